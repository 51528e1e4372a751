/* Descriptors that a checkpoint cannot carry: userfaultfd, an io_uring, a vsock socket. */
#include "wl.h"
#include <linux/io_uring.h>
int main(int argc, char **argv)
{
	struct io_uring_params p = { 0 };
	wl_start(argc, argv);
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	int ring = syscall(SYS_io_uring_setup, 4, &p);
	int vsock = socket(AF_VSOCK, SOCK_STREAM, 0);
	printf("userfaultfd %d\nio_uring %d\nvsock %d\n", uffd, ring, vsock);
	wl_wait();
	MUST(fcntl(uffd, F_GETFD) >= 0 || uffd < 0);
	MUST(fcntl(ring, F_GETFD) >= 0 || ring < 0);
	MUST(fcntl(vsock, F_GETFD) >= 0 || vsock < 0);
	wl_ok();
}
