/* A child traced by its parent, as below a debugger. Says the pid of the child. */
#include "wl.h"
#include <sys/ptrace.h>
int main(int argc, char **argv)
{
	int st;
	wl_start(argc, argv);
	pid_t p = wl_fork(NULL, NULL);
	MUST(ptrace(PTRACE_SEIZE, p, 0, 0) == 0);
	printf("traced %d\n", p);
	wl_wait();
	MUST(waitpid(p, &st, WNOHANG) == 0);
	MUST(ptrace(PTRACE_INTERRUPT, p, 0, 0) == 0); /* still ours */
	wl_ok();
}
