/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the stress of the gate knows to be true at every moment, and the store that checks it: the store stands under the LU, sees every byte
 * operation with its task, takes its time in two halves, and ends the program at the first that should not be there.
 */
#ifndef VS_TEST_MODEL_H
#define VS_TEST_MODEL_H

#include "core.h"

enum { NEXUSES = 3, INITIATORS = 4, BLOCK = 512, WORDS = BLOCK / 8, BLOCKS = 64 };
/* Who may touch which blocks, and what must then hold. */
enum {
	COUNTERS = 4,          /* 0..3: only COMPARE AND WRITE changes them */
	MIXED = 4,             /* 4..7: initiator i writes block MIXED + i, everybody else compares and writes it */
	SEQUENCE = 8,          /* 8..11: initiator i writes block SEQUENCE + i, in the order of its tags */
	SCRATCH = 16,          /* from here: anything */
};
enum { TAG_INITIATOR_SHIFT = 56 };
static inline uint32_t initiator_of(uint64_t tag) { return (uint32_t)(tag >> TAG_INITIATOR_SHIFT); }
static inline uint32_t nexus_of(uint32_t initiator) { return initiator ? initiator - 1 : 0; } /* 0 and 1 are queues of one device */

struct model {
	_Atomic uint32_t fenced_lu, fenced_nexus[NEXUSES]; /* a fence has returned, the gate has not been opened since */
	_Atomic int64_t in_flight, in_flight_nexus[NEXUSES];
	_Atomic int64_t in_set;                            /* of the above, commands that ORDERED must not meet */
	_Atomic uint32_t faulted;                          /* a CHECK CONDITION is to be told, and everything else has been stopped */
	_Atomic uint32_t ordered;                          /* an ORDERED one is under way in the store */
	_Atomic uint64_t barred[INITIATORS];               /* tags up to here were aborted, and that was said */
	_Atomic uint64_t last_sequence[INITIATORS];
	_Atomic uint64_t ios, cuts;
};
extern struct model model;

/* Random numbers of this thread. */
extern _Thread_local uint64_t random_state;
static inline uint64_t random_next(void)
{
	random_state ^= random_state << 13;
	random_state ^= random_state >> 7;
	random_state ^= random_state << 17;
	return random_state * 0x2545f4914f6cdd1dull >> 11;
}
static inline uint64_t random_below(uint64_t n) { return random_next() % n; }
static inline bool one_in(uint64_t n) { return random_below(n) == 0; }

int model_store(vs_core *core, uint64_t seed, vs_store **out);
uint64_t model_word(vs_store *s, uint32_t block); /* the first of its words: nothing is in flight */
bool model_whole(vs_store *s, uint32_t block);    /* all its words are the same */

#endif
