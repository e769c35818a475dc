// SPDX-License-Identifier: Apache-2.0
/*
 * SCRIPTS instructions of the LSI 53C895A, one function for each kind: I/O, read/write, transfer control, memory move, load/store. DSP is behind the
 * instruction when it begins. On a bus without devices a selection times out, and what waits for a phase waits until it is aborted.
 */
#include "lsi.h"

static int32_t offset24(uint32_t v) { return (int32_t)(v << 8) >> 8; }
static uint32_t dsp(const struct vs_lsi *l) { return vs_lsi_get(l, LSI_DSP); }
static void illegal(struct vs_lsi *l) { vs_lsi_interrupt_dma(l, LSI_IID); }
static bool connected(const struct vs_lsi *l) { return l->registers[LSI_SCNTL1] & LSI_CON1; }

/* ---- I/O ---------------------------------------------------------------------------------------------------------------------------------- */

enum { SELECT = 0, WAIT_DISCONNECT = 1, WAIT_RESELECT = 2, SET = 3, CLEAR = 4 };
enum { IO_RELATIVE = 1 << 26, IO_TABLE = 1 << 25, IO_CARRY = 1 << 10, IO_TARGET = 1 << 9, IO_ACK = 1 << 6, IO_ATN = 1 << 3 };
enum { SOCL_ATN = 0x08, SOCL_ACK = 0x40 };

static void select_target(struct vs_lsi *l, uint32_t insn)
{
	uint32_t word = insn;

	if (insn & IO_TABLE) {
		/* SCNTL3, the id and SXFER stand in the table. */
		if (!vs_lsi_memory(l, vs_lsi_get(l, LSI_DSA) + (uint32_t)offset24(insn), &word, 4, false))
			return;
		l->registers[LSI_SCNTL3] = (uint8_t)(word >> 24);
		l->registers[LSI_SXFER] = (uint8_t)(word >> 8);
	}
	l->registers[LSI_SDID] = word >> 16 & 0xf;
	if (connected(l))
		vs_lsi_set(l, LSI_DSP, vs_lsi_get(l, LSI_DNAD));
	else
		vs_lsi_select(l);
}

static void set_or_clear(struct vs_lsi *l, uint32_t insn, bool set)
{
	uint8_t lines = (uint8_t)((insn & IO_ATN ? SOCL_ATN : 0) | (insn & IO_ACK ? SOCL_ACK : 0)), *scntl0 = &l->registers[LSI_SCNTL0];

	if (set)
		l->registers[LSI_SOCL] |= lines;
	else
		l->registers[LSI_SOCL] &= (uint8_t)~lines;
	if (insn & IO_TARGET)
		*scntl0 = (uint8_t)((*scntl0 & 0xfe) | set);
	if (insn & IO_CARRY)
		l->carry = set;
}

static void input_output(struct vs_lsi *l, uint32_t insn)
{
	uint32_t to = l->insn[1];

	vs_lsi_set(l, LSI_DNAD, insn & IO_RELATIVE ? dsp(l) + (uint32_t)offset24(to) : to);
	switch (insn >> 27 & 7) {
	case SELECT:
		select_target(l, insn);
		return;
	case WAIT_DISCONNECT:
		if (connected(l))
			l->state = LSI_STUCK;
		return;
	case WAIT_RESELECT:
		if (l->registers[LSI_ISTAT0] & LSI_SIGP)
			vs_lsi_set(l, LSI_DSP, vs_lsi_get(l, LSI_DNAD));
		else
			l->state = LSI_WAITING;
		return;
	case SET:
		set_or_clear(l, insn, true);
		return;
	default:
		set_or_clear(l, insn, false);
		return;
	}
}

/* ---- read/write ---------------------------------------------------------------------------------------------------------------------------- */

enum { FROM_SFBR = 5, TO_SFBR = 6 };
enum { USE_SFBR = 1 << 23 };
enum { OP_MOVE = 0, OP_SHL = 1, OP_OR = 2, OP_XOR = 3, OP_AND = 4, OP_SHR = 5, OP_ADD = 6, OP_ADC = 7 };

static uint8_t operate(struct vs_lsi *l, uint32_t operator, uint8_t a, uint8_t b)
{
	uint32_t sum;
	uint8_t v;

	switch (operator) {
	case OP_MOVE:
		return b;
	case OP_SHL:
		v = (uint8_t)(a << 1 | l->carry);
		l->carry = a >> 7;
		return v;
	case OP_OR:
		return a | b;
	case OP_XOR:
		return a ^ b;
	case OP_AND:
		return a & b;
	case OP_SHR:
		v = (uint8_t)(a >> 1 | l->carry << 7);
		l->carry = a & 1;
		return v;
	default:
		sum = (uint32_t)a + b + (operator == OP_ADC && l->carry);
		l->carry = sum >> 8;
		return (uint8_t)sum;
	}
}

static void read_write(struct vs_lsi *l, uint32_t insn)
{
	uint8_t reg = (uint8_t)((insn >> 16 & 0x7f) | (insn & 0x80)), data = (uint8_t)(insn >> 8), a = 0, v;
	uint32_t operator = insn >> 24 & 7, kind = insn >> 27 & 7;

	if (insn & USE_SFBR)
		data = l->registers[LSI_SFBR];
	if (kind == FROM_SFBR)
		a = l->registers[LSI_SFBR];
	else if (operator != OP_MOVE)
		a = vs_lsi_read(l, reg);
	v = operate(l, operator, a, data);
	vs_lsi_write(l, kind == TO_SFBR ? LSI_SFBR : reg, v, true);
	vs_lsi_status_was_read(l);
}

/* ---- transfer control ------------------------------------------------------------------------------------------------------------------------ */

enum { JUMP = 0, CALL = 1, RETURN = 2, INTERRUPT = 3 };
enum { TC_RELATIVE = 1 << 23, TC_CARRY = 1 << 21, TC_FLY = 1 << 20, TC_TRUE = 1 << 19, TC_DATA = 1 << 18, TC_PHASE = 1 << 17, TC_WAIT = 1 << 16 };

/* All that is compared must come out as wanted; what compares nothing is always or never. */
static bool taken(const struct vs_lsi *l, uint32_t insn)
{
	bool want = insn & TC_TRUE;
	uint8_t mask = (uint8_t)~(insn >> 8);

	if (!(insn & (TC_CARRY | TC_DATA | TC_PHASE)))
		return want;
	if (insn & TC_CARRY && l->carry != want)
		return false;
	if (insn & TC_PHASE && ((l->registers[LSI_SSTAT1] & 7) == (insn >> 24 & 7)) != want)
		return false;
	return !(insn & TC_DATA) || (((l->registers[LSI_SFBR] ^ insn) & mask) == 0) == want;
}

static void transfer_control(struct vs_lsi *l, uint32_t insn)
{
	uint32_t to = insn & TC_RELATIVE ? dsp(l) + (uint32_t)offset24(l->insn[1]) : l->insn[1];

	if ((insn >> 27 & 7) > INTERRUPT) {
		illegal(l);
		return;
	}
	/* "When" a phase comes, without anybody to drive one. */
	if (insn & TC_WAIT && insn & TC_PHASE && !connected(l)) {
		l->state = LSI_STUCK;
		return;
	}
	if (!taken(l, insn))
		return;
	switch (insn >> 27 & 7) {
	case CALL:
		vs_lsi_set(l, LSI_TEMP, dsp(l));
		vs_lsi_set(l, LSI_DSP, to);
		return;
	case RETURN:
		vs_lsi_set(l, LSI_DSP, vs_lsi_get(l, LSI_TEMP));
		return;
	case INTERRUPT:
		if (!(insn & TC_FLY)) {
			vs_lsi_interrupt_dma(l, LSI_SIR);
			return;
		}
		l->registers[LSI_ISTAT0] |= LSI_INTF;
		vs_lsi_interrupt_pin(l);
		return;
	default:
		vs_lsi_set(l, LSI_ADDER, to);
		vs_lsi_set(l, LSI_DSP, to);
		return;
	}
}

/* ---- memory ------------------------------------------------------------------------------------------------------------------------------------ */

enum { LS_RELATIVE = 1 << 28, LS_LOAD = 1 << 24 };

/* The next piece of a memory move. */
void vs_lsi_move(struct vs_lsi *l)
{
	uint32_t n = vs_min(l->move_left, (uint32_t)sizeof(l->move));

	if (!vs_lsi_memory(l, l->move_from, l->move, n, false) || !vs_lsi_memory(l, l->move_to, l->move, n, true))
		return;
	l->move_from += n;
	l->move_to += n;
	l->move_left -= n;
}

static void memory_move(struct vs_lsi *l, uint32_t insn)
{
	l->move_from = l->insn[1];
	l->move_to = l->insn[2];
	/* Both ends are aligned alike. */
	if (!(insn & 0xffffff) || (l->move_from ^ l->move_to) & 3) {
		illegal(l);
		return;
	}
	l->move_left = insn & 0xffffff;
	vs_lsi_move(l);
}

/* One to four bytes, within a double word here and there. */
static void load_store(struct vs_lsi *l, uint32_t insn)
{
	uint32_t n = insn & 7, reg = insn >> 16 & 0xff, addr = l->insn[1];
	uint8_t data[4];

	if (insn & LS_RELATIVE)
		addr = vs_lsi_get(l, LSI_DSA) + (uint32_t)offset24(addr);
	if (!n || (reg & 3) + n > 4 || (addr ^ reg) & 3) {
		illegal(l);
		return;
	}
	if (insn & LS_LOAD) {
		if (!vs_lsi_memory(l, addr, data, n, false))
			return;
		for (uint32_t i = 0; i < n; i++)
			vs_lsi_write(l, (uint8_t)(reg + i), data[i], true);
		return;
	}
	for (uint32_t i = 0; i < n; i++)
		data[i] = vs_lsi_read(l, (uint8_t)(reg + i));
	vs_lsi_status_was_read(l);
	vs_lsi_memory(l, addr, data, n, true);
}

void vs_lsi_execute(struct vs_lsi *l)
{
	uint32_t insn = l->insn[0];

	switch (insn >> 29) {
	case 0:
	case 1: /* block move: of nothing it is illegal, else it waits for its phase */
		if (!(insn & 0xffffff) && !(insn & 1 << 28))
			illegal(l);
		else
			l->state = LSI_STUCK;
		return;
	case 2:
	case 3:
		if ((insn >> 27 & 7) <= CLEAR)
			input_output(l, insn);
		else
			read_write(l, insn);
		return;
	case 4:
	case 5:
		transfer_control(l, insn);
		return;
	case 6:
		memory_move(l, insn);
		return;
	default:
		load_store(l, insn);
		return;
	}
}
