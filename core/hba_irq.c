// SPDX-License-Identifier: Apache-2.0
/*
 * Interrupts of a PCI function over vfio-user. INTx is a level that masks itself when it is told (VFIO_IRQ_INFO_AUTOMASKED): the client unmasks it when
 * the guest has seen to it, and is told again where the function still drives it. The others are told as they come; masked, they wait.
 * Whoever set the eventfds up (Python) has looked at what they are.
 */
#include "hba.h"

bool vs_hba_irq_exists(const struct vs_hba *h, uint32_t index, uint32_t start, uint32_t count)
{
	return index < VS_HBA_IRQS && count && start < h->irq_counts[index] && count <= h->irq_counts[index] - start;
}

/* bell.h: a client that makes its eventfd blocking hangs us once, until the watchdog comes. */
static void signal_bell(struct vs_hba *h, struct vs_hba_irq *irq)
{
	vs_count(&h->stats.interrupts, 1);
	if (vs_unlikely(h->bell_unsafe))
		vs_bell_signal_safely(&irq->bell, h->core->engine == &vs_engine_uring);
	else if (!vs_bell_signal(&irq->bell))
		h->bell_unsafe = true;
}

static void tell(struct vs_hba *h, uint32_t index)
{
	struct vs_hba_irq *irq = &h->irqs[index];

	if (irq->masked) {
		irq->pending = true;
		vs_count(&h->stats.interrupts_masked, 1);
		return;
	}
	irq->pending = false;
	if (irq->bell.fd < 0)
		return;
	irq->masked = index == VS_HIRQ_INTX;
	signal_bell(h, irq);
}

void vs_hba_irq_level(struct vs_hba *h, uint32_t index, bool level)
{
	struct vs_hba_irq *irq = &h->irqs[index];
	bool rises = level && !irq->level;

	irq->level = level;
	if (!level)
		irq->pending = false;
	else if (rises)
		tell(h, index);
}

void vs_hba_irq_trigger(struct vs_hba *h, uint32_t index) { tell(h, index); }

void vs_hba_irq_mask(struct vs_hba *h, uint32_t index, bool masked)
{
	struct vs_hba_irq *irq = &h->irqs[index];

	irq->masked = masked;
	if (!masked && (irq->pending || irq->level))
		tell(h, index);
}

void vs_hba_irqs_drop(struct vs_hba *h)
{
	for (int i = 0; i < VS_HBA_IRQS; i++) {
		vs_bell_set(&h->irqs[i].bell, -1);
		h->irqs[i].masked = h->irqs[i].pending = false;
	}
	h->bell_unsafe = false;
}
