// SPDX-License-Identifier: Apache-2.0
/*
 * Gives every file of the folders on the command line to a fuzz target's LLVMFuzzerTestOneInput, once and in the order
 * of their names, so that a committed corpus is an ordinary test for any compiler. It finds nothing new: that is
 * libFuzzer's part.
 */
#include <dirent.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int replay_file(const char *path)
{
	FILE *file = fopen(path, "rb");
	uint8_t *data = NULL;
	long size;
	int err = -EIO;

	if (!file)
		return -errno;
	if (fseek(file, 0, SEEK_END) || (size = ftell(file)) < 0 || fseek(file, 0, SEEK_SET))
		goto out;
	/* Exactly as long as the input: one byte read beyond it is then seen by ASan. */
	data = malloc(size ? (size_t)size : 1);
	if (!data || fread(data, 1, (size_t)size, file) != (size_t)size)
		goto out;
	LLVMFuzzerTestOneInput(data, (size_t)size);
	err = 0;
out:
	free(data);
	fclose(file);
	return err;
}

/* Returns the number of files given to the target, or a negative code. */
static int replay_folder(const char *folder)
{
	struct dirent **entries;
	int n = scandir(folder, &entries, NULL, alphasort);
	int replayed = 0;
	int err = 0;

	if (n < 0)
		return -errno;
	for (int i = 0; i < n; i++) {
		char path[4096];

		if (!err && entries[i]->d_name[0] != '.') {
			snprintf(path, sizeof(path), "%s/%s", folder, entries[i]->d_name);
			err = replay_file(path);
			if (err)
				fprintf(stderr, "%s: %s\n", path, strerror(-err));
			else
				replayed++;
		}
		free(entries[i]);
	}
	free(entries);
	return err ? err : replayed;
}

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		int n = replay_folder(argv[i]);

		/* A corpus that is gone or empty would test nothing. */
		if (n <= 0) {
			fprintf(stderr, "%s: %s\n", argv[i], n ? strerror(-n) : "no inputs");
			return 1;
		}
		printf("%s: %d inputs\n", argv[i], n);
	}
	return argc > 1 ? 0 : 2;
}
