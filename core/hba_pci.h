/* SPDX-License-Identifier: Apache-2.0 */
/* The configuration space of a PCI function, and its interrupt pin. Clauses are those of the PCI Local Bus Specification 3.0. */
#ifndef VS_HBA_PCI_H
#define VS_HBA_PCI_H

#include "hba.h"

enum { VS_PCI_CONFIG = 256, VS_PCI_BARS = 6 };
/* 6.2.2, 6.2.3 */
enum { VS_PCI_COMMAND = 4, VS_PCI_COMMAND_IO = 1, VS_PCI_COMMAND_MEMORY = 2, VS_PCI_COMMAND_MASTER = 4, VS_PCI_COMMAND_INTX_OFF = 1 << 10 };
enum { VS_PCI_STATUS = 6, VS_PCI_STATUS_INTERRUPT = 1 << 3, VS_PCI_STATUS_MASTER_ABORT = 1 << 13 };

struct vs_pci_ids {
	uint16_t vendor, device, subsystem_vendor, subsystem;
	uint32_t class_code; /* base class, sub-class, interface */
	uint8_t revision, min_gnt, max_lat;
};
struct vs_pci {
	struct vs_hba *hba;
	bool pin; /* the function has a reason for INTx, whether or not it may drive it */
	uint8_t config[VS_PCI_CONFIG], fresh[VS_PCI_CONFIG]; /* as it is, as it is after a reset */
	uint8_t writable[VS_PCI_CONFIG], clears[VS_PCI_CONFIG]; /* bits that take what is written, and that a written 1 clears */
};

/* Sets the configuration region and INTA# of h. */
void vs_pci_init(struct vs_pci *p, struct vs_hba *h, const struct vs_pci_ids *ids);
/* size: a power of two. The BAR's region can be read and written. */
void vs_pci_add_bar(struct vs_pci *p, uint32_t index, uint32_t size, bool io);
void vs_pci_read(const struct vs_pci *p, uint64_t offset, uint8_t *data, uint32_t count);
void vs_pci_write(struct vs_pci *p, uint64_t offset, const uint8_t *data, uint32_t count);
void vs_pci_interrupt(struct vs_pci *p, bool on);
void vs_pci_reset(struct vs_pci *p);
static inline uint16_t vs_pci_u16(const struct vs_pci *p, uint32_t at) { return (uint16_t)(p->config[at] | p->config[at + 1] << 8); }
static inline bool vs_pci_master(const struct vs_pci *p) { return vs_pci_u16(p, VS_PCI_COMMAND) & VS_PCI_COMMAND_MASTER; }

#endif
