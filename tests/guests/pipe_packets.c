/* A pipe in packet mode keeps the borders of its packets; data copied by tee(2) is in both pipes. */
#include "wl.h"
static void expect(int fd, unsigned seed, int len)
{
	static unsigned char b[8192];
	int n = read(fd, b, sizeof(b));
	if (n != len || !pat_ok(b, n, seed))
		fail("a packet of %d bytes, not %d", n, len);
}
static void put(int fd, unsigned seed, int len)
{
	static unsigned char b[4096];
	pat_fill(b, len, seed);
	MUST(write(fd, b, len) == len);
}
int main(int argc, char **argv)
{
	int p[2], half[2], one[2], two[2];
	char b[16];
	wl_start(argc, argv);
	MUST(!pipe2(p, O_DIRECT) && fcntl(p[1], F_SETPIPE_SZ, 1 << 17) == 1 << 17);
	put(p[1], 1, 1);
	put(p[1], 2, 4096);
	put(p[1], 3, 5);
	put(p[1], 4, 5);
	MUST(!pipe2(half, O_DIRECT | O_NONBLOCK));
	put(half[1], 5, 3);
	put(half[1], 6, 7);
	close(half[1]);
	MUST(!pipe(one) && !pipe(two));
	MUST(write(one[1], "twice", 5) == 5 && tee(one[0], two[1], 5, 0) == 5);
	wl_wait();
	MUST(fcntl(p[1], F_GETFL) & O_DIRECT);
	expect(p[0], 1, 1);
	expect(p[0], 2, 4096);
	expect(p[0], 3, 5);
	expect(p[0], 4, 5);
	put(p[1], 7, 2);
	put(p[1], 8, 3);
	expect(p[0], 7, 2);
	expect(p[0], 8, 3);
	expect(half[0], 5, 3);
	expect(half[0], 6, 7);
	MUST(read(half[0], b, 1) == 0);
	MUST(read(one[0], b, 16) == 5 && !memcmp(b, "twice", 5));
	MUST(read(two[0], b, 16) == 5 && !memcmp(b, "twice", 5));
	wl_ok();
}
