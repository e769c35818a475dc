// SPDX-License-Identifier: Apache-2.0
/* Sense data for the errors that the data plane finds itself, in the LU's format. Everything else builds its sense in Python. */
#include "core.h"
#include "gen/tables.h"
#include "task.h"

/* SPC-5 4.4.2.4.2: SKSV, C/D, BPV and bit pointer, field pointer. */
static void field_pointer(uint8_t *p, const struct vs_sense *s)
{
	p[0] = (uint8_t)(0x80 | (s->field_in_cdb ? 0x40 : 0) | 0x08 | (s->field_bit & 7));
	p[1] = (uint8_t)(s->field_byte >> 8);
	p[2] = (uint8_t)s->field_byte;
}

/* SPC-5 4.4.3. INFORMATION is 32 bits: VALID only when it fits. */
static uint8_t fixed(uint8_t *b, const struct vs_sense *s)
{
	memset(b, 0, 18);
	b[0] = 0x70;
	b[2] = s->key;
	b[7] = 10;
	b[12] = (uint8_t)(s->asc_ascq >> 8);
	b[13] = (uint8_t)s->asc_ascq;
	if (s->has_information && s->information <= UINT32_MAX) {
		b[0] |= 0x80;
		vs_put_be32(b + 3, (uint32_t)s->information);
	}
	if (s->has_field)
		field_pointer(b + 15, s);
	return 18;
}

/* SPC-5 4.4.2: header, then an information descriptor (00h) and a sense-key-specific one (02h). */
static uint8_t descriptor(uint8_t *b, const struct vs_sense *s)
{
	uint8_t n = 8;

	memset(b, 0, 8);
	b[0] = 0x72;
	b[1] = s->key;
	b[2] = (uint8_t)(s->asc_ascq >> 8);
	b[3] = (uint8_t)s->asc_ascq;
	if (s->has_information) {
		uint8_t *d = b + n;

		memset(d, 0, 12);
		d[1] = 0x0a;
		d[2] = 0x80;
		vs_put_be64(d + 4, s->information);
		n += 12;
	}
	if (s->has_field) {
		uint8_t *d = b + n;

		memset(d, 0, 8);
		d[0] = 0x02;
		d[1] = 0x06;
		field_pointer(d + 4, s);
		n += 8;
	}
	b[7] = (uint8_t)(n - 8);
	return n;
}

void vs_sense_set(struct vs_task *t, const struct vs_sense *s)
{
	bool d_sense = atomic_load_explicit(&t->lu->d_sense, memory_order_relaxed);
	/* A unit that has blocks beyond 32 bits tells of them in descriptors, whatever D_SENSE says: the fixed format could not. */
	bool wide = s->has_information && s->information > UINT32_MAX && atomic_load_explicit(&t->lu->num_blocks, memory_order_relaxed) > UINT32_MAX;

	t->status = VS_STATUS_CHECK_CONDITION;
	t->medium_error = s->key == VS_SK_MEDIUM_ERROR || s->key == VS_SK_HARDWARE_ERROR;
	t->sense_len = d_sense || wide ? descriptor(t->sense, s) : fixed(t->sense, s);
}
