// SPDX-License-Identifier: Apache-2.0
/*
 * The messages of a vfio-user client that must not wait for Python: accesses to regions, one or many, and masking and unmasking of interrupts. The
 * rest is Python's. Clause names are those of QEMU's docs/interop/vfio-user.rst.
 */
#include "hba.h"

static uint32_t u32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return v;
}

static uint64_t u64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return v;
}

/* ---- regions --------------------------------------------------------------------------------------------------------------------------- */

struct access { uint64_t offset; uint32_t region, count; };

static struct access access_of(const uint8_t *p) { return (struct access){ u64(p), u32(p + 8), u32(p + 12) }; }

/* Whether it lies within a region that may be used so. */
static bool allowed(const struct vs_hba *h, const struct access *a, uint32_t flag)
{
	const struct vs_hba_region_info *r;

	if (a->region >= VS_HBA_REGIONS || !a->count || a->count > VS_HBA_XFER_MAX)
		return false;
	r = &h->regions[a->region];
	return (r->flags & flag) && a->count <= r->size && a->offset <= r->size - a->count;
}

/* VFIO_USER_REGION_READ */
static void region_read(struct vs_hba *h, const struct vs_hba_header *m, const uint8_t *data, uint32_t length)
{
	struct access a;
	int err = -EINVAL;

	if (length == VS_HR_FIELDS) {
		a = access_of(data);
		if (allowed(h, &a, VS_HBA_REGION_READ) && a.count <= h->max_xfer)
			err = h->ops->read(h, a.region, a.offset, h->scratch + VS_HR_FIELDS, a.count);
	}
	if (err) {
		vs_htx_refuse(h, m, err);
		return;
	}
	vs_count(&h->stats.reads, 1);
	memcpy(h->scratch, data, VS_HR_FIELDS);
	vs_htx_answer(h, m, h->scratch, VS_HR_FIELDS + a.count);
}

/* VFIO_USER_REGION_WRITE */
static void region_write(struct vs_hba *h, const struct vs_hba_header *m, const uint8_t *data, uint32_t length)
{
	int err = -EINVAL;

	if (length >= VS_HR_FIELDS) {
		struct access a = access_of(data);

		if (a.count == length - VS_HR_FIELDS && allowed(h, &a, VS_HBA_REGION_WRITE))
			err = h->ops->write(h, a.region, a.offset, data + VS_HR_FIELDS, a.count);
	}
	if (err) {
		vs_htx_refuse(h, m, err);
		return;
	}
	vs_count(&h->stats.writes, 1);
	vs_htx_answer(h, m, data, VS_HR_FIELDS);
}

/* VFIO_USER_REGION_WRITE_MULTI: "the number of device writes completed" is answered; the first that fails is the last that is tried. */
static void region_write_multi(struct vs_hba *h, const struct vs_hba_header *m, const uint8_t *data, uint32_t length)
{
	uint64_t n, done = 0;

	if (length < sizeof(n) || (length - sizeof(n)) % VS_HW_BYTES || (n = u64(data)) != (length - sizeof(n)) / VS_HW_BYTES) {
		vs_htx_refuse(h, m, -EINVAL);
		return;
	}
	for (data += sizeof(n); done < n; done++, data += VS_HW_BYTES) {
		struct access a = access_of(data);

		if (a.count > VS_HW_BYTES - VS_HR_FIELDS || !allowed(h, &a, VS_HBA_REGION_WRITE) ||
		    h->ops->write(h, a.region, a.offset, data + VS_HR_FIELDS, a.count))
			break;
		vs_count(&h->stats.writes, 1);
	}
	vs_htx_answer(h, m, &done, sizeof(done));
}

/* ---- interrupts ------------------------------------------------------------------------------------------------------------------------------ */

static bool one_bit(uint32_t v) { return v && !(v & (v - 1)); }

static void act(struct vs_hba *h, uint32_t index, uint32_t action)
{
	if (action == VS_HI_TRIGGER)
		vs_hba_irq_trigger(h, index);
	else
		vs_hba_irq_mask(h, index, action == VS_HI_MASK);
}

/* VFIO_USER_DEVICE_SET_IRQS without descriptors: INTx is unmasked after each interrupt. False: what sets them up or down is Python's. */
static bool set_irqs(struct vs_hba *h, const struct vs_hba_header *m, const uint8_t *data, uint32_t length)
{
	uint32_t flags, index, start, count, kind, action;

	if (length < VS_HI_FIELDS)
		return false;
	flags = u32(data + 4);
	index = u32(data + 8);
	start = u32(data + 12);
	count = u32(data + 16);
	kind = flags & VS_HI_DATA;
	action = flags & VS_HI_ACTION;
	if (kind == VS_HI_EVENTFD || !count)
		return false;
	if (!one_bit(kind) || !one_bit(action) || flags & ~(uint32_t)(VS_HI_DATA | VS_HI_ACTION) || !vs_hba_irq_exists(h, index, start, count) ||
	    length != VS_HI_FIELDS + (kind == VS_HI_BOOL ? count : 0)) {
		vs_htx_refuse(h, m, -EINVAL);
		return true;
	}
	/* Every type that there is has one interrupt. */
	if (kind == VS_HI_NONE || data[VS_HI_FIELDS])
		act(h, index, action);
	vs_htx_answer(h, m, NULL, 0);
	return true;
}

bool vs_hba_run(struct vs_hba *h, const struct vs_hba_header *m, const uint8_t *data, uint32_t length)
{
	if (!h->open)
		return false;
	switch (m->command) {
	case VS_HC_REGION_READ:
		region_read(h, m, data, length);
		return true;
	case VS_HC_REGION_WRITE:
		region_write(h, m, data, length);
		return true;
	case VS_HC_REGION_WRITE_MULTI:
		region_write_multi(h, m, data, length);
		return true;
	case VS_HC_SET_IRQS:
		return set_irqs(h, m, data, length);
	default:
		return false;
	}
}
