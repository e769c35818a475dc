/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The LSI 53C895A: its registers (lsi_registers.c), interrupts and timers (lsi_interrupts.c) and SCRIPTS processor (lsi_scripts.c, lsi_instructions.c), as
 * far as they go without a device on the SCSI bus. Names are the chip's. Facts: the definitions in Linux's drivers/scsi/sym53c8xx_2, and what that
 * driver, FreeBSD's sym and SeaBIOS rely on. Everything is the worker's.
 */
#ifndef VS_LSI_H
#define VS_LSI_H

#include "hba_pci.h"

enum vs_lsi_register {
	LSI_SCNTL0 = 0x00, LSI_SCNTL1 = 0x01, LSI_SCNTL2 = 0x02, LSI_SCNTL3 = 0x03, LSI_SCID = 0x04, LSI_SXFER = 0x05, LSI_SDID = 0x06,
	LSI_GPREG = 0x07, LSI_SFBR = 0x08, LSI_SOCL = 0x09, LSI_SSID = 0x0a, LSI_SBCL = 0x0b, LSI_DSTAT = 0x0c, LSI_SSTAT0 = 0x0d,
	LSI_SSTAT1 = 0x0e, LSI_SSTAT2 = 0x0f, LSI_DSA = 0x10, LSI_ISTAT0 = 0x14, LSI_ISTAT1 = 0x15, LSI_MBOX0 = 0x16, LSI_CTEST0 = 0x18,
	LSI_CTEST1 = 0x19, LSI_CTEST2 = 0x1a, LSI_CTEST3 = 0x1b, LSI_TEMP = 0x1c, LSI_DFIFO = 0x20, LSI_CTEST4 = 0x21, LSI_CTEST5 = 0x22,
	LSI_DBC = 0x24, LSI_DCMD = 0x27, LSI_DNAD = 0x28, LSI_DSP = 0x2c, LSI_DSPS = 0x30, LSI_SCRATCHA = 0x34, LSI_DMODE = 0x38, LSI_DIEN = 0x39,
	LSI_DCNTL = 0x3b, LSI_ADDER = 0x3c, LSI_SIEN0 = 0x40, LSI_SIEN1 = 0x41, LSI_SIST0 = 0x42, LSI_SIST1 = 0x43, LSI_MACNTL = 0x46,
	LSI_STIME0 = 0x48, LSI_STIME1 = 0x49, LSI_STEST0 = 0x4c, LSI_STEST2 = 0x4e, LSI_STEST4 = 0x52, LSI_CCNTL0 = 0x56, LSI_SCRATCHB = 0x5c,
	LSI_MMRS = 0xa0, LSI_MMWS = 0xa4, LSI_SFS = 0xa8, LSI_DRS = 0xac, LSI_REGISTERS = 256,
};
enum { LSI_CON1 = 0x10 /* SCNTL1 */, LSI_RST1 = 0x08, LSI_COM = 0x01 /* DCNTL */, LSI_IRQD = 0x02, LSI_STD = 0x04, LSI_SSM = 0x10, LSI_PFF = 0x40, LSI_MAN = 0x01 /* DMODE */ };
enum { LSI_DIP = 0x01 /* ISTAT0 */, LSI_SIP = 0x02, LSI_INTF = 0x04, LSI_CON = 0x08, LSI_SEM = 0x10, LSI_SIGP = 0x20, LSI_SRST = 0x40, LSI_ABRT = 0x80 };
enum { LSI_SIRQD = 0x01 /* ISTAT1 */, LSI_SRUN = 0x02 };
enum { LSI_IID = 0x01 /* DSTAT */, LSI_SIR = 0x04, LSI_SSI = 0x08, LSI_ABORTED = 0x10, LSI_BF = 0x20, LSI_DFE = 0x80 };
/* SIST0 and SIST1, as one word. */
enum { LSI_PAR = 0x0001, LSI_RST = 0x0002, LSI_UDC = 0x0004, LSI_SGE = 0x0008, LSI_RSL = 0x0010, LSI_SEL = 0x0020, LSI_CMP = 0x0040, LSI_MA = 0x0080, LSI_HTH = 0x0100, LSI_GEN = 0x0200, LSI_STO = 0x0400 };
enum { LSI_RAM = 8192, LSI_BAR_IO = 0, LSI_BAR_REGISTERS = 1, LSI_BAR_RAM = 2 };

enum vs_lsi_state { LSI_HALTED, LSI_RUNNING, LSI_SELECTING /* until the timeout */, LSI_WAITING /* for a reselection */, LSI_STUCK /* for a phase, which nobody drives */ };

struct vs_lsi {
	struct vs_pci pci;
	uint8_t registers[LSI_REGISTERS];
	uint8_t *ram;
	enum vs_lsi_state state;
	bool carry;
	uint8_t dstat, dstat_behind;   /* without DFE; the second level of the stack */
	uint16_t sist, sist_behind;
	bool dip, sip, status_read;    /* since the last vs_lsi_status_was_read */
	uint32_t insn[3];              /* as fetched */
	struct vs_timer slice, selection, general;
	uint32_t move_from, move_to, move_left; /* a memory move under way */
	uint8_t move[4096];
	struct { vs_counter instructions, faults, slices; } stats;
};

static inline uint32_t vs_lsi_get(const struct vs_lsi *l, uint32_t at)
{
	uint32_t v;

	memcpy(&v, l->registers + at, 4);
	return v;
}
static inline void vs_lsi_set(struct vs_lsi *l, uint32_t at, uint32_t v) { memcpy(l->registers + at, &v, 4); }

/* lsi_registers.c: a byte as the CPU or a SCRIPTS instruction sees it. */
uint8_t vs_lsi_read(struct vs_lsi *l, uint8_t at);
void vs_lsi_write(struct vs_lsi *l, uint8_t at, uint8_t v, bool scripts);
/* lsi_interrupts.c */
void vs_lsi_interrupt_dma(struct vs_lsi *l, uint8_t bits);
void vs_lsi_interrupt_scsi(struct vs_lsi *l, uint16_t bits);
void vs_lsi_interrupt_pin(struct vs_lsi *l);
/* The two reads clear; what is behind moves in by the third, after all bytes of an access. */
uint8_t vs_lsi_read_dstat(struct vs_lsi *l);
uint8_t vs_lsi_read_sist(struct vs_lsi *l, bool high);
void vs_lsi_status_was_read(struct vs_lsi *l);
void vs_lsi_set_stime1(struct vs_lsi *l, uint8_t v);
void vs_lsi_select(struct vs_lsi *l); /* nobody answers: STO after the time in STIME0 */
void vs_lsi_timers_init(struct vs_lsi *l);
void vs_lsi_timers_stop(struct vs_lsi *l);
/* lsi_scripts.c */
void vs_lsi_start(struct vs_lsi *l);   /* at DSP */
void vs_lsi_step(struct vs_lsi *l);    /* DCNTL.STD */
void vs_lsi_halt(struct vs_lsi *l);
void vs_lsi_signalled(struct vs_lsi *l); /* SIGP was set */
void vs_lsi_slice(struct vs_worker *w, struct vs_timer *t);
bool vs_lsi_memory(struct vs_lsi *l, uint64_t addr, void *buffer, uint32_t n, bool write); /* false: a bus fault was raised */
/* lsi_instructions.c: one instruction, with DSP behind it. */
void vs_lsi_execute(struct vs_lsi *l);
void vs_lsi_move(struct vs_lsi *l); /* the next piece of a memory move */

#endif
