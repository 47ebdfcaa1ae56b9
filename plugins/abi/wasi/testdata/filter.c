// A filter as they were always written: it reads lines, and writes lines. The line's first words after the
// arguments' count say what else it does wrong.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char line[1 << 21];

int main(int argc, char **argv) {
	const char *mode = getenv("MILLRACE_CONFIG_MODE");
	if (mode == NULL) mode = "";
	if (strcmp(mode, "deaf") == 0) { // reads nothing
		puts("null");
		return 0;
	}
	while (fgets(line, sizeof line, stdin) != NULL) {
		if (strstr(line, "boom")) __builtin_trap();
		if (strstr(line, "exit")) {
			fprintf(stderr, "cannot go on\n");
			exit(3);
		}
		if (strstr(line, "flood")) for (;;) puts("[{\"verdict\":\"pass\"}]");
		if (strstr(line, "spin")) for (volatile int i = 0;; i++) {}
		if (strstr(line, "slow")) for (volatile int i = 0; i < 20000000; i++) {}
		if (strstr(line, "mute")) continue;
		if (strstr(line, "twice")) fputs("null\n", stdout);
		if (strstr(line, "broken")) {
			puts("{\"verdict\":");
			continue;
		}
		if (strstr(line, "args")) {
			printf("[\"%d\"", argc);
			for (int i = 0; i < argc; i++) printf(",\"%s\"", argv[i]);
			puts("]");
			continue;
		}
		if (strcmp(mode, "say") == 0) { // the event's data is the answer
			char *data = strstr(line, "\"data\":") + 7;
			data[strlen(data) - 2] = 0;
			puts(data);
			continue;
		}
		fputs(line, stdout);
	}
	return 0;
}
