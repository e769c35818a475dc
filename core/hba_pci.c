// SPDX-License-Identifier: Apache-2.0
/*
 * The configuration space of a PCI function: a byte of mask for each byte, and the interrupt pin with its two switches (PCI 3.0 6.2.2, 6.2.3). Where the
 * BARs lie is kept and means nothing here: the client says with each access which of them it is.
 */
#include "hba_pci.h"

enum { VENDOR = 0, DEVICE = 2, REVISION = 8, CLASS = 9, BAR0 = 0x10, SUBSYSTEM_VENDOR = 0x2c, SUBSYSTEM = 0x2e, LINE = 0x3c, PIN = 0x3d, MIN_GNT = 0x3e, MAX_LAT = 0x3f };
enum { CACHE_LINE = 0xc, LATENCY = 0xd, BAR_IO = 1, INTA = 1 };
/* What a write to the status register clears: parity, aborts, system error (6.2.3). */
enum { COMMAND_BITS = 0x0547, STATUS_CLEARS = 0xf900 };

static void put(uint8_t *to, uint32_t at, uint32_t bytes, uint32_t v)
{
	for (uint32_t i = 0; i < bytes; i++)
		to[at + i] = (uint8_t)(v >> (8 * i));
}

void vs_pci_init(struct vs_pci *p, struct vs_hba *h, const struct vs_pci_ids *ids)
{
	memset(p, 0, sizeof(*p));
	p->hba = h;
	put(p->fresh, VENDOR, 2, ids->vendor);
	put(p->fresh, DEVICE, 2, ids->device);
	put(p->fresh, REVISION, 1, ids->revision);
	put(p->fresh, CLASS, 3, ids->class_code);
	put(p->fresh, SUBSYSTEM_VENDOR, 2, ids->subsystem_vendor);
	put(p->fresh, SUBSYSTEM, 2, ids->subsystem);
	put(p->fresh, PIN, 1, INTA);
	put(p->fresh, MIN_GNT, 1, ids->min_gnt);
	put(p->fresh, MAX_LAT, 1, ids->max_lat);
	put(p->writable, VS_PCI_COMMAND, 2, COMMAND_BITS);
	put(p->clears, VS_PCI_STATUS, 2, STATUS_CLEARS);
	p->writable[CACHE_LINE] = p->writable[LATENCY] = p->writable[LINE] = 0xff;
	memcpy(p->config, p->fresh, sizeof(p->config));
	h->regions[VS_HREGION_CONFIG].size = VS_PCI_CONFIG;
	h->regions[VS_HREGION_CONFIG].flags = VS_HBA_REGION_READ | VS_HBA_REGION_WRITE;
	h->irq_counts[VS_HIRQ_INTX] = 1;
}

void vs_pci_add_bar(struct vs_pci *p, uint32_t index, uint32_t size, bool io)
{
	uint32_t at = BAR0 + 4 * index;

	/* 6.2.5.1: the bits below the size are zero, which is how it is found out; an I/O BAR says so in bit 0. */
	put(p->fresh, at, 4, io ? BAR_IO : 0);
	put(p->writable, at, 4, ~(size - 1));
	memcpy(p->config + at, p->fresh + at, 4);
	p->hba->regions[index].size = size;
	p->hba->regions[index].flags = VS_HBA_REGION_READ | VS_HBA_REGION_WRITE;
}

void vs_pci_read(const struct vs_pci *p, uint64_t offset, uint8_t *data, uint32_t count) { memcpy(data, p->config + offset, count); }

static void drive(struct vs_pci *p)
{
	uint16_t command = vs_pci_u16(p, VS_PCI_COMMAND);

	/* 6.2.3: the status bit shows the reason even where the pin may not be driven. */
	put(p->config, VS_PCI_STATUS, 2, (vs_pci_u16(p, VS_PCI_STATUS) & ~(uint32_t)VS_PCI_STATUS_INTERRUPT) | (p->pin ? VS_PCI_STATUS_INTERRUPT : 0));
	vs_hba_irq_level(p->hba, VS_HIRQ_INTX, p->pin && !(command & VS_PCI_COMMAND_INTX_OFF));
}

void vs_pci_write(struct vs_pci *p, uint64_t offset, const uint8_t *data, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		uint8_t *c = &p->config[offset + i], keeps = p->writable[offset + i];

		*c = (uint8_t)((*c & ~keeps) | (data[i] & keeps));
		*c &= (uint8_t)~(data[i] & p->clears[offset + i]);
	}
	drive(p);
}

void vs_pci_interrupt(struct vs_pci *p, bool on)
{
	if (p->pin == on)
		return;
	p->pin = on;
	drive(p);
}

void vs_pci_reset(struct vs_pci *p)
{
	memcpy(p->config, p->fresh, sizeof(p->config));
	p->pin = false;
	drive(p);
}
