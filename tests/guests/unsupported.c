/*
 * Descriptors that a checkpoint cannot carry: userfaultfd, an io_uring, a vsock socket, a perf event,
 * a network namespace in which nobody is.
 */
#include "wl.h"
#include <linux/io_uring.h>
#include <linux/perf_event.h>
int main(int argc, char **argv)
{
	struct io_uring_params p = { .flags = 1U << 12 /* IORING_SETUP_SINGLE_ISSUER */ };
	wl_start(argc, argv);
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	int ring = syscall(SYS_io_uring_setup, 4, &p);
	int vsock = socket(AF_VSOCK, SOCK_STREAM, 0);
	struct perf_event_attr attr = { .type = PERF_TYPE_SOFTWARE, .size = sizeof(attr),
		.config = PERF_COUNT_SW_TASK_CLOCK };
	int perf = syscall(SYS_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
	int home = open("/proc/self/ns/net", O_RDONLY);
	MUST(home >= 0 && !unshare(CLONE_NEWNET));
	int ns = open("/proc/self/ns/net", O_RDONLY);
	MUST(ns >= 0 && !setns(home, CLONE_NEWNET));
	printf("perf %d\nnamespace %d\n", perf, ns);
	printf("userfaultfd %d\nio_uring %d\nvsock %d\n", uffd, ring, vsock);
	wl_wait();
	MUST(fcntl(uffd, F_GETFD) >= 0 || uffd < 0);
	MUST(fcntl(ring, F_GETFD) >= 0 || ring < 0);
	MUST(fcntl(vsock, F_GETFD) >= 0 || vsock < 0);
	MUST(fcntl(perf, F_GETFD) >= 0 || perf < 0);
	MUST(fcntl(ns, F_GETFD) >= 0);
	wl_ok();
}
