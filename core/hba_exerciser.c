// SPDX-License-Identifier: Apache-2.0
/*
 * A PCI function for whoever tests a vfio-user client, or this server: it keeps a word, copies the client's memory from one place to another, and
 * raises INTx, each when a register is written. BAR 0 has the registers below, BAR 2 is memory that can be mapped and is served by messages, too. It
 * is no device that a guest has a driver for.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "hba_pci.h"

enum { REGISTERS = 256, MEMORY = 8192, COPY_MAX = 65536, BAR_REGISTERS = 0, BAR_MEMORY = 2 };
/* Registers of 32 bits, little-endian; addresses are two of them. */
enum { ID = 0, WORD = 4, CONTROL = 8, STATUS = 12, SOURCE = 16, TARGET = 24, LENGTH = 32, MOVED = 36, ENABLE = 40 };
enum { CONTROL_COPY = 1, CONTROL_RAISE = 2, CONTROL_LOWER = 4 };
enum { STATUS_IDLE = 0, STATUS_BUSY = 1, STATUS_DONE = 2, STATUS_FAULT = 3 };
#define EXERCISER_ID 0x72657845u /* "Exer" */

struct exerciser {
	struct vs_pci pci;
	uint8_t *memory;
	uint32_t registers[REGISTERS / 4];
	struct vs_hba_dma dma;
	bool writing;
	uint8_t buffer[COPY_MAX];
};

/* No vendor has the number FFFEh. */
static const struct vs_pci_ids ids = { .vendor = 0xfffe, .device = 1, .subsystem_vendor = 0xfffe, .subsystem = 1, .class_code = 0xff0000 };

static uint64_t address(const struct exerciser *e, uint32_t at) { return e->registers[at / 4] | (uint64_t)e->registers[at / 4 + 1] << 32; }

static void finish(struct exerciser *e, uint32_t status)
{
	e->registers[STATUS / 4] = status;
	e->registers[MOVED / 4] = e->writing ? (uint32_t)e->dma.moved : 0;
	if (e->registers[ENABLE / 4])
		vs_pci_interrupt(&e->pci, true);
}

static void moved(struct exerciser *e, int err)
{
	if (!err && !e->writing) {
		e->writing = true;
		e->dma.addr = address(e, TARGET);
		e->dma.write = true;
		err = vs_hba_dma_start(e->pci.hba, &e->dma);
	}
	if (err != -EINPROGRESS)
		finish(e, err ? STATUS_FAULT : STATUS_DONE);
}

static void dma_done(struct vs_hba_dma *d) { moved(vs_container_of(d, struct exerciser, dma), d->err); }

static void copy(struct exerciser *e)
{
	if (e->registers[STATUS / 4] == STATUS_BUSY)
		return;
	e->writing = false;
	if (!vs_pci_master(&e->pci) || e->registers[LENGTH / 4] > COPY_MAX) {
		finish(e, STATUS_FAULT);
		return;
	}
	e->registers[STATUS / 4] = STATUS_BUSY;
	e->dma = (struct vs_hba_dma){ .done = dma_done, .addr = address(e, SOURCE), .length = e->registers[LENGTH / 4], .buffer = e->buffer };
	moved(e, vs_hba_dma_start(e->pci.hba, &e->dma));
}

static void control(struct exerciser *e, uint32_t v)
{
	if (v & CONTROL_COPY)
		copy(e);
	if (v & CONTROL_RAISE)
		vs_pci_interrupt(&e->pci, true);
	if (v & CONTROL_LOWER)
		vs_pci_interrupt(&e->pci, false);
}

static int exerciser_read(struct vs_hba *h, uint32_t region, uint64_t offset, uint8_t *data, uint32_t count)
{
	struct exerciser *e = h->function;

	switch (region) {
	case BAR_REGISTERS:
		memcpy(data, (const uint8_t *)e->registers + offset, count);
		return 0;
	case BAR_MEMORY:
		memcpy(data, e->memory + offset, count);
		return 0;
	default:
		vs_pci_read(&e->pci, offset, data, count);
		return 0;
	}
}

static int write_register(struct exerciser *e, uint64_t offset, const uint8_t *data, uint32_t count)
{
	uint32_t v;

	if (count != 4 || offset % 4)
		return -EINVAL;
	memcpy(&v, data, 4);
	if (offset == CONTROL)
		control(e, v);
	else if (offset == WORD || (offset >= SOURCE && offset <= ENABLE && offset != MOVED))
		e->registers[offset / 4] = v;
	return 0;
}

static int exerciser_write(struct vs_hba *h, uint32_t region, uint64_t offset, const uint8_t *data, uint32_t count)
{
	struct exerciser *e = h->function;

	switch (region) {
	case BAR_REGISTERS:
		return write_register(e, offset, data, count);
	case BAR_MEMORY:
		memcpy(e->memory + offset, data, count);
		return 0;
	default:
		vs_pci_write(&e->pci, offset, data, count);
		return 0;
	}
}

static void exerciser_reset(struct vs_hba *h)
{
	struct exerciser *e = h->function;

	vs_hba_dma_cancel(&e->dma);
	memset(e->registers, 0, sizeof(e->registers));
	e->registers[ID / 4] = EXERCISER_ID;
	vs_pci_reset(&e->pci);
	vs_hba_reset_done(h);
}

static void exerciser_destroy(struct vs_hba *h)
{
	struct exerciser *e = h->function;

	vs_hba_dma_cancel(&e->dma);
	munmap(e->memory, MEMORY);
	free(e);
}

static const struct vs_hba_ops ops = { .name = "exerciser", .read = exerciser_read, .write = exerciser_write, .reset = exerciser_reset, .destroy = exerciser_destroy };

/* Sealed: a client that shortens it would end us by SIGBUS. */
static int memory_new(int *fd, uint8_t **out)
{
	void *p;

	*fd = memfd_create("exerciser", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (*fd < 0)
		return -errno;
	if (ftruncate(*fd, MEMORY) || fcntl(*fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		return -errno;
	p = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
	if (p == MAP_FAILED)
		return -errno;
	*out = p;
	return 0;
}

int vs_hba_exerciser_init(struct vs_hba *h)
{
	struct exerciser *e = calloc(1, sizeof(*e));
	int err;

	if (!e)
		return -ENOMEM;
	vs_pci_init(&e->pci, h, &ids);
	vs_pci_add_bar(&e->pci, BAR_REGISTERS, REGISTERS, false);
	vs_pci_add_bar(&e->pci, BAR_MEMORY, MEMORY, false);
	err = memory_new(&h->regions[BAR_MEMORY].fd, &e->memory);
	if (err) {
		free(e);
		return err; /* whoever made h closes what stands in its regions */
	}
	h->regions[BAR_MEMORY].flags |= VS_HBA_REGION_MMAP;
	e->registers[ID / 4] = EXERCISER_ID;
	h->ops = &ops;
	h->function = e;
	return 0;
}
