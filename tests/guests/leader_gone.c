/* A leader that has ended by pthread_exit while its threads live: a zombie that cannot be traced. */
#include "wl.h"
static pthread_t other;
static volatile int value = 41, go;
static __thread int tls = 5;
static int fd;

static char state_of(pid_t tid)
{
	char path[64], *s;
	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", tid);
	return (s = slurp(path)) && (s = strrchr(s, ')')) ? s[2] : '?';
}
static void *second(void *a)
{
	(void)a;
	tls = 8;
	while (!go)
		usleep(1000);
	return (void *)(long)(tls == 8 ? value : 0);
}
static void *first(void *a)
{
	void *got;
	char b[8] = "";
	(void)a;
	tls = 7;
	while (state_of(getpid()) != 'Z')
		usleep(1000);
	MUST(write(fd, "before", 6) == 6);
	wl_wait();
	MUST(state_of(getpid()) == 'Z');
	MUST(tls == 7 && syscall(SYS_gettid) != getpid());
	char *s = slurp("/proc/self/comm");
	MUST(s && !strcmp(s, "gone-leader\n"));
	MUST(write(fd, " after", 6) == 6 && pread(fd, b, 6, 6) == 6 && !strcmp(b, " after"));
	value = 42;
	go = 1;
	MUST(pthread_join(other, &got) == 0 && (long)got == 42);
	wl_ok();
	return NULL;
}
int main(int argc, char **argv)
{
	pthread_t t;
	wl_start(argc, argv);
	prctl(PR_SET_NAME, "gone-leader");
	MUST((fd = open("leader_gone.txt", O_RDWR | O_CREAT | O_TRUNC, 0644)) >= 0);
	MUST(pthread_create(&other, NULL, second, NULL) == 0);
	MUST(pthread_create(&t, NULL, first, NULL) == 0);
	syscall(SYS_exit, 3);
}
