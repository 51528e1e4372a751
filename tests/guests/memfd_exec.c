/* A program that runs from a memfd: the executable has no path. It says ready when it does. */
#include "wl.h"
static int shown_exe_is_memfd(void)
{
	char link[256];
	ssize_t n = readlink("/proc/self/exe", link, sizeof(link) - 1);
	MUST(n > 0);
	link[n] = 0;
	return !strcmp(link, "/memfd:program (deleted)");
}
int main(int argc, char **argv)
{
	if (argc < 3) {
		char *again[] = { argv[0], argv[1], "again", NULL };
		char *none[] = { NULL };
		static char buf[1 << 16];
		ssize_t n;
		int from = open("/proc/self/exe", O_RDONLY), to = memfd_create("program", MFD_CLOEXEC);
		MUST(from >= 0 && to >= 0);
		while ((n = read(from, buf, sizeof(buf))) > 0)
			MUST(write(to, buf, n) == n);
		fexecve(to, again, none);
		fail("fexecve");
	}
	wl_start(argc, argv);
	MUST(shown_exe_is_memfd());
	static unsigned char data[8192];
	pat_fill(data, sizeof(data), 3);
	wl_wait();
	MUST(shown_exe_is_memfd() && pat_ok(data, sizeof(data), 3));
	wl_ok();
}
