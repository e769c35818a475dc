// SPDX-License-Identifier: Apache-2.0
/*
 * Interrupts of the LSI 53C895A and its timers. Interrupts are stacked two deep: while one that counts is pending, later ones gather behind the status
 * registers and move in when these were read. A SCSI interrupt that is masked and not fatal only sets its bit.
 */
#include "lsi.h"

/* These stop nothing while they are masked. */
enum { NOT_FATAL = LSI_CMP | LSI_SEL | LSI_RSL | LSI_GEN | LSI_HTH };
/* Of the time values 1..15: 100 us, doubled each time (STIME0, STIME1). */
#define TIME_NS(v) ((v) ? UINT64_C(100000) << ((v) - 1) : 0)
/* Where a driver sets no time, a device that is not there is waited for this long: a chip would wait for ever. */
#define SELECTION_NS UINT64_C(250000000)

static uint16_t sien(const struct vs_lsi *l) { return (uint16_t)(l->registers[LSI_SIEN0] | l->registers[LSI_SIEN1] << 8); }
static uint16_t counts(const struct vs_lsi *l, uint16_t bits) { return bits & (uint16_t)(sien(l) | (uint16_t)~NOT_FATAL); }

void vs_lsi_interrupt_pin(struct vs_lsi *l)
{
	bool on = (l->registers[LSI_ISTAT0] & LSI_INTF) || (l->dip && (l->dstat & l->registers[LSI_DIEN])) || (l->sip && (l->sist & sien(l)));

	if (l->registers[LSI_ISTAT1] & LSI_SIRQD || l->registers[LSI_DCNTL] & LSI_IRQD)
		on = false;
	vs_pci_interrupt(&l->pci, on);
}

void vs_lsi_interrupt_dma(struct vs_lsi *l, uint8_t bits)
{
	/* All of them are fatal: masked, they stop the processor and are only not told. */
	if (l->dip || l->sip) {
		l->dstat_behind |= bits;
	} else {
		l->dstat |= bits;
		l->dip = true;
	}
	vs_lsi_halt(l);
	vs_lsi_interrupt_pin(l);
}

void vs_lsi_interrupt_scsi(struct vs_lsi *l, uint16_t bits)
{
	bool stops = counts(l, bits) != 0;

	if (stops && (l->dip || l->sip)) {
		l->sist_behind |= bits;
	} else {
		l->sist |= bits;
		l->sip |= stops;
	}
	if (stops)
		vs_lsi_halt(l);
	vs_lsi_interrupt_pin(l);
}

void vs_lsi_status_was_read(struct vs_lsi *l)
{
	if (!l->status_read)
		return;
	l->status_read = false;
	l->dip = l->dstat != 0;
	l->sip = counts(l, l->sist) != 0;
	if (!l->dip && !l->sip && (l->dstat_behind || l->sist_behind)) {
		/* The pin falls in between, so that a driver whose interrupts are edges hears of them. */
		vs_lsi_interrupt_pin(l);
		l->dstat = l->dstat_behind;
		l->sist |= l->sist_behind;
		l->dstat_behind = 0;
		l->sist_behind = 0;
		l->dip = l->dstat != 0;
		l->sip = counts(l, l->sist) != 0;
	}
	vs_lsi_interrupt_pin(l);
}

uint8_t vs_lsi_read_dstat(struct vs_lsi *l)
{
	uint8_t v = l->dstat | LSI_DFE;

	l->dstat = 0;
	l->status_read = true;
	return v;
}

uint8_t vs_lsi_read_sist(struct vs_lsi *l, bool high)
{
	uint8_t v = (uint8_t)(high ? l->sist >> 8 : l->sist);

	l->sist &= high ? 0x00ff : 0xff00;
	l->status_read = true;
	return v;
}

/* ---- timers --------------------------------------------------------------------------------------------------------------------------- */

static void general_over(struct vs_worker *w, struct vs_timer *t)
{
	(void)w;
	vs_lsi_interrupt_scsi(vs_container_of(t, struct vs_lsi, general), LSI_GEN);
}

static void selection_over(struct vs_worker *w, struct vs_timer *t)
{
	struct vs_lsi *l = vs_container_of(t, struct vs_lsi, selection);

	(void)w;
	l->registers[LSI_SCNTL1] &= (uint8_t)~LSI_CON1;
	l->registers[LSI_SBCL] = 0;
	vs_lsi_interrupt_scsi(l, LSI_STO);
}

void vs_lsi_timers_init(struct vs_lsi *l)
{
	vs_timer_init(&l->slice, vs_lsi_slice);
	vs_timer_init(&l->general, general_over);
	vs_timer_init(&l->selection, selection_over);
}

void vs_lsi_timers_stop(struct vs_lsi *l)
{
	struct vs_worker *w = l->pci.hba->w;

	vs_timer_cancel(w, &l->slice);
	vs_timer_cancel(w, &l->general);
	vs_timer_cancel(w, &l->selection);
}

void vs_lsi_set_stime1(struct vs_lsi *l, uint8_t v)
{
	struct vs_worker *w = l->pci.hba->w;

	vs_timer_cancel(w, &l->general);
	/* No memory for a timer: it fires at once, which is what the driver must be ready for. */
	if ((v & 0xf) && vs_timer_set(w, &l->general, vs_now_ns() + TIME_NS(v & 0xf)))
		vs_lsi_interrupt_scsi(l, LSI_GEN);
}

void vs_lsi_select(struct vs_lsi *l)
{
	uint64_t ns = TIME_NS(l->registers[LSI_STIME0] & 0xf);

	l->state = LSI_SELECTING;
	if (vs_timer_set(l->pci.hba->w, &l->selection, vs_now_ns() + (ns ? ns : SELECTION_NS)))
		vs_lsi_interrupt_scsi(l, LSI_STO);
}
