// SPDX-License-Identifier: Apache-2.0
/*
 * The LSI 53C895A as a PCI function: its register file, byte by byte, its SCRIPTS RAM, soft and hard reset. A register that only keeps what is written has
 * its mask in a table; what does something when it is touched stands in a switch.
 */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lsi.h"

static const struct vs_pci_ids ids = { .vendor = 0x1000, .device = 0x0012, .subsystem_vendor = 0x1000, .subsystem = 0x1000, .class_code = 0x010000, .revision = 1, .min_gnt = 0x11, .max_lat = 0x12 };

/* What a write changes. From SCRATCHB on everything keeps, up to the reserved ends. */
static uint8_t writable(uint8_t at)
{
	static const uint8_t masks[LSI_SCRATCHB] = {
		[LSI_SCNTL0] = 0xff, [LSI_SCNTL1] = 0xef, [LSI_SCNTL2] = 0xf6, [LSI_SCNTL3] = 0xff, [LSI_SCID] = 0x6f, [LSI_SXFER] = 0xff,
		[LSI_SDID] = 0x0f, [LSI_GPREG] = 0x1f, [LSI_SOCL] = 0xff, [LSI_DSA] = 0xff, [LSI_DSA + 1] = 0xff, [LSI_DSA + 2] = 0xff,
		[LSI_DSA + 3] = 0xff, [LSI_ISTAT1] = LSI_SIRQD, [LSI_MBOX0] = 0xff, [LSI_MBOX0 + 1] = 0xff, [LSI_CTEST0] = 0xff,
		[LSI_CTEST2] = 0x08, [LSI_CTEST3] = 0x03, [LSI_TEMP] = 0xff, [LSI_TEMP + 1] = 0xff, [LSI_TEMP + 2] = 0xff, [LSI_TEMP + 3] = 0xff,
		[LSI_CTEST4] = 0xff, [LSI_CTEST5] = 0x3f, [LSI_CTEST5 + 1] = 0xff, [LSI_DBC] = 0xff, [LSI_DBC + 1] = 0xff, [LSI_DBC + 2] = 0xff,
		[LSI_DCMD] = 0xff, [LSI_DNAD] = 0xff, [LSI_DNAD + 1] = 0xff, [LSI_DNAD + 2] = 0xff, [LSI_DNAD + 3] = 0xff, [LSI_DSP] = 0xff,
		[LSI_DSP + 1] = 0xff, [LSI_DSP + 2] = 0xff, [LSI_DSP + 3] = 0xff, [LSI_DSPS] = 0xff, [LSI_DSPS + 1] = 0xff, [LSI_DSPS + 2] = 0xff,
		[LSI_DSPS + 3] = 0xff, [LSI_SCRATCHA] = 0xff, [LSI_SCRATCHA + 1] = 0xff, [LSI_SCRATCHA + 2] = 0xff, [LSI_SCRATCHA + 3] = 0xff,
		[LSI_DMODE] = 0xff, [LSI_DIEN] = 0x7d, [LSI_DIEN + 1] = 0xff, [LSI_DCNTL] = 0xbb, [LSI_SIEN0] = 0xff, [LSI_SIEN1] = 0x17,
		[0x44] = 0xff, [0x45] = 0xff, [LSI_MACNTL] = 0x0f, [0x47] = 0xff, [LSI_STIME0] = 0xff, [LSI_STIME1] = 0x7f, [0x4a] = 0xff, [0x4b] = 0xff,
		[0x4d] = 0xcc, [LSI_STEST2] = 0xfe, [0x4f] = 0xff, [0x54] = 0xff, [0x55] = 0xff, [LSI_CCNTL0] = 0xf3, [LSI_CCNTL0 + 1] = 0xff,
	};

	if (at < LSI_SCRATCHB)
		return masks[at];
	return at >= 0xbc && at < 0xc0 ? 0 : at >= 0xe0 ? 0 : 0xff;
}

/* ---- reset ---------------------------------------------------------------------------------------------------------------------------- */

/* ISTAT0.SRST: every register, but neither the RAM nor the configuration space. */
static void soft_reset(struct vs_lsi *l)
{
	vs_lsi_timers_stop(l);
	memset(l->registers, 0, sizeof(l->registers));
	l->registers[LSI_SCNTL0] = 0xc0;
	l->registers[LSI_CTEST1] = 0xf0;  /* the DMA FIFO is empty */
	l->registers[LSI_CTEST2] = 0x01;
	l->registers[LSI_DCMD] = 0x40;
	l->registers[LSI_STEST4] = 0xe0;  /* LVD, and the clock multiplier is locked */
	l->state = LSI_HALTED;
	l->carry = l->dip = l->sip = l->status_read = false;
	l->dstat = l->dstat_behind = 0;
	l->sist = l->sist_behind = 0;
	vs_lsi_interrupt_pin(l);
}

static void lsi_reset(struct vs_hba *h)
{
	struct vs_lsi *l = h->function;

	soft_reset(l);
	vs_pci_reset(&l->pci);
	vs_hba_reset_done(h);
}

/* ---- one byte --------------------------------------------------------------------------------------------------------------------------- */

static uint8_t istat0(const struct vs_lsi *l)
{
	return (uint8_t)((l->registers[LSI_ISTAT0] & (LSI_INTF | LSI_SEM | LSI_SIGP | LSI_SRST | LSI_ABRT)) | (l->dip ? LSI_DIP : 0) | (l->sip ? LSI_SIP : 0) |
			 (l->registers[LSI_SCNTL1] & LSI_CON1 ? LSI_CON : 0));
}

/* Reading CTEST2 takes SIGP back; that is how a script hears of it. */
static uint8_t ctest2(struct vs_lsi *l)
{
	uint8_t v = l->registers[LSI_CTEST2], sigp = l->registers[LSI_ISTAT0] & LSI_SIGP;

	l->registers[LSI_ISTAT0] &= (uint8_t)~LSI_SIGP;
	return (uint8_t)(v | (sigp ? 0x40 : 0));
}

uint8_t vs_lsi_read(struct vs_lsi *l, uint8_t at)
{
	switch (at) {
	case LSI_DSTAT:
		return vs_lsi_read_dstat(l);
	case LSI_SIST0:
		return vs_lsi_read_sist(l, false);
	case LSI_SIST1:
		return vs_lsi_read_sist(l, true);
	case LSI_ISTAT0:
		return istat0(l);
	case LSI_ISTAT1:
		return (uint8_t)(l->registers[at] | (l->state == LSI_RUNNING ? LSI_SRUN : 0));
	case LSI_CTEST2:
		return ctest2(l);
	case LSI_SSTAT2:
		return (uint8_t)(l->registers[at] | (l->registers[LSI_SCNTL1] & LSI_CON1 ? 0 : 0x02)); /* LDSC */
	default:
		return l->registers[at];
	}
}

static void write_istat0(struct vs_lsi *l, uint8_t v)
{
	uint8_t *r = &l->registers[LSI_ISTAT0];

	if (v & LSI_SRST) {
		soft_reset(l);
		*r = LSI_SRST; /* until it is written without */
		return;
	}
	*r = (uint8_t)((*r & ~(v & LSI_INTF) & LSI_INTF) | (v & (LSI_SEM | LSI_SIGP | LSI_ABRT)));
	if (v & LSI_ABRT)
		vs_lsi_interrupt_dma(l, LSI_ABORTED);
	vs_lsi_interrupt_pin(l);
	if (v & LSI_SIGP)
		vs_lsi_signalled(l);
}

/* SCNTL1.RST drives the bus's reset line for as long as it is set; the chip hears itself. */
static void write_scntl1(struct vs_lsi *l, uint8_t v)
{
	uint8_t old = l->registers[LSI_SCNTL1];

	l->registers[LSI_SCNTL1] = (uint8_t)((v & ~LSI_CON1) | (old & LSI_CON1));
	if ((v & ~old) & LSI_RST1) {
		l->registers[LSI_SCNTL1] &= (uint8_t)~LSI_CON1;
		l->registers[LSI_SSTAT0] |= 0x02;
		vs_timer_cancel(l->pci.hba->w, &l->selection);
		if (l->state == LSI_SELECTING)
			l->state = LSI_HALTED;
		vs_lsi_interrupt_scsi(l, LSI_RST);
	} else if (!(v & LSI_RST1)) {
		l->registers[LSI_SSTAT0] &= (uint8_t)~0x02;
	}
}

void vs_lsi_write(struct vs_lsi *l, uint8_t at, uint8_t v, bool scripts)
{
	uint8_t mask = writable(at), *r = &l->registers[at];

	if (at == LSI_SFBR) {
		if (scripts)
			*r = v;
		return;
	}
	if (at == LSI_ISTAT0) {
		write_istat0(l, v);
		return;
	}
	if (at == LSI_SCNTL1) {
		write_scntl1(l, v);
		return;
	}
	*r = (uint8_t)((*r & ~mask) | (v & mask));
	switch (at) {
	case LSI_SCNTL2:
		*r &= (uint8_t)~(v & 0x09); /* WSS, WSR: a written 1 clears */
		break;
	case LSI_DSP + 3:
		if (!(l->registers[LSI_DMODE] & LSI_MAN) && !scripts)
			vs_lsi_start(l);
		break;
	case LSI_DCNTL:
		if (v & LSI_STD && !scripts)
			vs_lsi_step(l);
		vs_lsi_interrupt_pin(l);
		break;
	case LSI_STIME1:
		vs_lsi_set_stime1(l, v);
		break;
	case LSI_DIEN:
	case LSI_SIEN0:
	case LSI_SIEN1:
	case LSI_ISTAT1:
		vs_lsi_interrupt_pin(l);
		break;
	default:
		break;
	}
}

/* ---- regions ------------------------------------------------------------------------------------------------------------------------------ */

/* The registers repeat through the memory BAR. */
static int lsi_read(struct vs_hba *h, uint32_t region, uint64_t offset, uint8_t *data, uint32_t count)
{
	struct vs_lsi *l = h->function;

	if (region == LSI_BAR_RAM) {
		memcpy(data, l->ram + offset, count);
	} else if (region == VS_HREGION_CONFIG) {
		vs_pci_read(&l->pci, offset, data, count);
	} else {
		for (uint32_t i = 0; i < count; i++)
			data[i] = vs_lsi_read(l, (uint8_t)(offset + i));
		vs_lsi_status_was_read(l);
	}
	return 0;
}

static int lsi_write(struct vs_hba *h, uint32_t region, uint64_t offset, const uint8_t *data, uint32_t count)
{
	struct vs_lsi *l = h->function;

	if (region == LSI_BAR_RAM)
		memcpy(l->ram + offset, data, count);
	else if (region == VS_HREGION_CONFIG)
		vs_pci_write(&l->pci, offset, data, count);
	else
		for (uint32_t i = 0; i < count; i++)
			vs_lsi_write(l, (uint8_t)(offset + i), data[i], false);
	return 0;
}

/* ---- life ---------------------------------------------------------------------------------------------------------------------------------- */

static void lsi_destroy(struct vs_hba *h)
{
	struct vs_lsi *l = h->function;

	vs_lsi_timers_stop(l);
	munmap(l->ram, LSI_RAM);
	free(l);
}

static const struct vs_hba_ops ops = { .name = "lsi53c895a", .read = lsi_read, .write = lsi_write, .reset = lsi_reset, .destroy = lsi_destroy };

/* Sealed: a client that shortens it would end us by SIGBUS. */
static int ram_new(int *fd, uint8_t **out)
{
	void *p;

	*fd = memfd_create("scripts-ram", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (*fd < 0 || ftruncate(*fd, LSI_RAM) || fcntl(*fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		return -errno;
	p = mmap(NULL, LSI_RAM, PROT_READ | PROT_WRITE, MAP_SHARED, *fd, 0);
	if (p == MAP_FAILED)
		return -errno;
	*out = p;
	return 0;
}

int vs_hba_lsi_init(struct vs_hba *h)
{
	struct vs_lsi *l = calloc(1, sizeof(*l));
	int err;

	if (!l)
		return -ENOMEM;
	vs_pci_init(&l->pci, h, &ids);
	vs_pci_add_bar(&l->pci, LSI_BAR_IO, LSI_REGISTERS, true);
	vs_pci_add_bar(&l->pci, LSI_BAR_REGISTERS, 1024, false);
	vs_pci_add_bar(&l->pci, LSI_BAR_RAM, LSI_RAM, false);
	err = ram_new(&h->regions[LSI_BAR_RAM].fd, &l->ram);
	if (err) {
		free(l);
		return err; /* whoever made h closes what stands in its regions */
	}
	h->regions[LSI_BAR_RAM].flags |= VS_HBA_REGION_MMAP;
	h->ops = &ops;
	h->function = l;
	vs_lsi_timers_init(l);
	soft_reset(l);
	return 0;
}
