/*
 * A parent for a restored tree that wants one with a certain pid: runs argv[1...], says how that
 * ended, adopts what it leaves behind and waits for it.
 */
#include "wl.h"
int main(int argc, char **argv)
{
	int st;
	MUST(argc > 1 && prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
	pid_t p = fork();
	MUST(p >= 0);
	if (p == 0) {
		execv(argv[1], argv + 1);
		_exit(127);
	}
	MUST(waitpid(p, &st, 0) == p);
	printf("ended %d\n", WIFEXITED(st) ? WEXITSTATUS(st) : -WTERMSIG(st));
	fflush(stdout);
	while (waitpid(-1, &st, 0) > 0)
		;
	return 0;
}
