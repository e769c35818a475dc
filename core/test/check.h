/* SPDX-License-Identifier: Apache-2.0 */
/* Assertions of the test programs: the first that fails names its place and ends the program. Not for the code under test. */
#ifndef VS_TEST_CHECK_H
#define VS_TEST_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(cond) \
	do { \
		if (!(cond)) { \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #cond); \
			exit(1); \
		} \
	} while (0)

/* For numbers: shows what was there instead. */
#define CHECK_EQ(got, want) \
	do { \
		long long got_ = (long long)(got), want_ = (long long)(want); \
		if (got_ != want_) { \
			fprintf(stderr, "%s:%d: %s is %lld, not %lld\n", __FILE__, __LINE__, #got, got_, want_); \
			exit(1); \
		} \
	} while (0)

#endif
