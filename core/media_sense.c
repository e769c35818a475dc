// SPDX-License-Identifier: Apache-2.0
/* How media commands end: sense data for what the initiator did wrong, and the one map from store errors to sense. Format is sense.c's. */
#include "media.h"

bool vs_media_illegal(struct vs_task *t, uint16_t asc)
{
	vs_sense_set(t, &(struct vs_sense){ .key = VS_SK_ILLEGAL_REQUEST, .asc_ascq = asc });
	return ENDED;
}

bool vs_media_bad_field(struct vs_task *t, uint16_t byte, uint8_t bit)
{
	vs_sense_set(t, &(struct vs_sense){ .key = VS_SK_ILLEGAL_REQUEST, .asc_ascq = VS_ASC_INVALID_FIELD_IN_CDB, .has_field = true,
					    .field_in_cdb = true, .field_byte = byte, .field_bit = bit });
	return ENDED;
}

bool vs_media_bad_parameter(struct vs_task *t, uint16_t byte)
{
	vs_sense_set(t, &(struct vs_sense){ .key = VS_SK_ILLEGAL_REQUEST, .asc_ascq = VS_ASC_INVALID_FIELD_IN_PARAMETER_LIST, .has_field = true,
					    .field_byte = byte, .field_bit = 7 });
	return ENDED;
}

bool vs_media_out_of_range(struct vs_task *t, uint64_t lba)
{
	vs_sense_set(t, &(struct vs_sense){ .key = VS_SK_ILLEGAL_REQUEST, .asc_ascq = VS_ASC_LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE,
					    .has_information = true, .information = lba });
	return ENDED;
}

bool vs_media_miscompare(struct vs_task *t, uint64_t offset)
{
	vs_sense_set(t, &(struct vs_sense){ .key = VS_SK_MISCOMPARE, .asc_ascq = VS_ASC_MISCOMPARE_DURING_VERIFY_OPERATION,
					    .has_information = true, .information = offset });
	return ENDED;
}

/* SBC-4 4.7.7: a WRITE LONG said that this block is not to be read. */
bool vs_media_marked_bad(struct vs_task *t, uint64_t lba)
{
	vs_sense_set(t, &(struct vs_sense){ .key = VS_SK_MEDIUM_ERROR, .asc_ascq = VS_ASC_READ_ERROR_LBA_MARKED_BAD_BY_APPLICATION_CLIENT,
					    .has_information = true, .information = lba });
	return ENDED;
}

/* The map is a table of scsi/sense.py. */
static const struct { uint8_t key; uint16_t asc_ascq; } sense_of_error[VS_ERR_KINDS] = { VS_SENSE_OF_STORE_ERRORS };

void vs_media_tell_failed(struct vs_lu *lu, struct vs_store *store, struct vs_worker *w)
{
	if (!atomic_load(&store->flush_failed) || (atomic_fetch_or(&lu->gate, VS_GATE_STORE_FAILED) & VS_GATE_STORE_FAILED))
		return;
	vs_upcall_new(w->core, VS_UP_STORE_FAILED, w->index, lu->cookie, 0, 0, NULL);
}

bool vs_media_store_error(struct vs_task *t, int32_t err)
{
	vs_media_tell_failed(t->lu, t->io.store, t->w);
	if (err == VS_ERR_BUSY) {
		t->status = VS_STATUS_BUSY;
		return ENDED;
	}
	if (err < 0 || err >= VS_ERR_KINDS)
		err = VS_ERR_INTERNAL;
	vs_sense_set(t, &(struct vs_sense){ .key = sense_of_error[err].key, .asc_ascq = sense_of_error[err].asc_ascq });
	return ENDED;
}
