/* A parent in a vfork whose child takes its time: asleep where no signal reaches it. The child
 * ends at SIGUSR1, then the parent waits for SIGTERM as every guest. */
#include "wl.h"
static void end(int signal)
{
	(void)signal;
	_exit(0);
}
int main(int argc, char **argv)
{
	wl_start(argc, argv);
	printf("vforks\n");
	fflush(stdout);
	pid_t kid = vfork();
	if (kid == 0) {
		signal(SIGUSR1, end);
		for (;;)
			pause();
	}
	signal(SIGUSR1, SIG_DFL);
	MUST(kid > 0 && waitpid(kid, NULL, 0) == kid);
	wl_wait();
	wl_ok();
}
