// SPDX-License-Identifier: Apache-2.0
/*
 * The SCRIPTS processor's life: starting, fetching, halting, waiting, and sharing its worker. It runs so many steps at once and then lets others have
 * their turn, so a script that never ends costs time and nothing else; a memory move is one step for each piece of it.
 */
#include "lsi.h"

enum { STEPS = 256, PAUSE_NS = 20000 };

static uint32_t ram_base(const struct vs_lsi *l)
{
	uint32_t base;

	memcpy(&base, l->pci.config + 0x10 + 4 * LSI_BAR_RAM, 4);
	return base & ~(uint32_t)(LSI_RAM - 1);
}

/* A chip finds its own RAM without the bus. Memory that the client has no descriptor for is no place for a script or its data. */
bool vs_lsi_memory(struct vs_lsi *l, uint64_t addr, void *buffer, uint32_t n, bool write)
{
	struct vs_hba_dma d = { .addr = addr, .length = n, .buffer = buffer, .write = write };
	uint32_t base = ram_base(l);
	int err;

	if (base && addr >= base && n <= LSI_RAM && addr - base <= LSI_RAM - n) {
		if (write)
			memcpy(l->ram + (addr - base), buffer, n);
		else
			memcpy(buffer, l->ram + (addr - base), n);
		return true;
	}
	err = vs_pci_master(&l->pci) ? vs_hba_dma_start(l->pci.hba, &d) : -EFAULT;
	if (!err)
		return true;
	if (err == -EINPROGRESS)
		vs_hba_dma_cancel(&d);
	vs_count(&l->stats.faults, 1);
	vs_lsi_interrupt_dma(l, LSI_BF);
	return false;
}

/* Three words for a memory move, two for all others. */
static bool fetch(struct vs_lsi *l)
{
	uint32_t dsp = vs_lsi_get(l, LSI_DSP), words = 2;

	if (!vs_lsi_memory(l, dsp, l->insn, 8, false))
		return false;
	if (l->insn[0] >> 29 == 6) {
		words = 3;
		if (!vs_lsi_memory(l, dsp + 8, &l->insn[2], 4, false))
			return false;
	}
	vs_lsi_set(l, LSI_DSP, dsp + 4 * words);
	l->registers[LSI_DCMD] = (uint8_t)(l->insn[0] >> 24);
	vs_lsi_set(l, LSI_DSPS, l->insn[1]);
	vs_count(&l->stats.instructions, 1);
	return true;
}

static void step(struct vs_lsi *l)
{
	if (!l->move_left) {
		if (!fetch(l))
			return;
		vs_lsi_execute(l);
	} else {
		vs_lsi_move(l);
	}
	if (l->state == LSI_RUNNING && !l->move_left && l->registers[LSI_DCNTL] & LSI_SSM)
		vs_lsi_interrupt_dma(l, LSI_SSI);
}

void vs_lsi_slice(struct vs_worker *w, struct vs_timer *t)
{
	struct vs_lsi *l = vs_container_of(t, struct vs_lsi, slice);

	vs_count(&l->stats.slices, 1);
	for (int n = 0; l->state == LSI_RUNNING && n < STEPS; n++)
		step(l);
	/* Without memory for a timer it stops, as by an abort. */
	if (l->state == LSI_RUNNING && vs_timer_set(w, &l->slice, vs_now_ns() + PAUSE_NS))
		vs_lsi_interrupt_dma(l, LSI_ABORTED);
}

void vs_lsi_halt(struct vs_lsi *l)
{
	struct vs_worker *w = l->pci.hba->w;

	l->state = LSI_HALTED;
	l->move_left = 0;
	vs_timer_cancel(w, &l->slice);
	vs_timer_cancel(w, &l->selection);
}

static void run(struct vs_lsi *l)
{
	vs_lsi_halt(l);
	l->state = LSI_RUNNING;
	vs_lsi_slice(l->pci.hba->w, &l->slice);
}

void vs_lsi_start(struct vs_lsi *l) { run(l); }

void vs_lsi_step(struct vs_lsi *l)
{
	if (l->state == LSI_HALTED)
		run(l);
}

void vs_lsi_signalled(struct vs_lsi *l)
{
	if (l->state != LSI_WAITING)
		return;
	vs_lsi_set(l, LSI_DSP, vs_lsi_get(l, LSI_DNAD));
	run(l);
}
