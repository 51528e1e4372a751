/* A task in the middle of vfork: its child runs in its memory and has not exec'ed. */
#include "wl.h"
static volatile int *go;
static void in_vfork(void *a)
{
	pid_t p;
	(void)a;
	if ((p = vfork()) == 0) {
		go[0] = 1;
		while (!go[1])
			usleep(1000);
		_exit(7);
	}
	int st;
	MUST(waitpid(p, &st, 0) == p && WEXITSTATUS(st) == 7);
	_exit(9);
}
int main(int argc, char **argv)
{
	int st;
	wl_start(argc, argv);
	go = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pid_t kid = wl_fork(in_vfork, NULL);
	while (!go[0])
		usleep(1000);
	printf("vfork %d\n", kid);
	wl_wait();
	go[1] = 1;
	MUST(waitpid(kid, &st, 0) == kid && WEXITSTATUS(st) == 9);
	wl_nkids = 0;
	wl_ok();
}
