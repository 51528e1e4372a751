/*
 * Datagrams wait with the addresses of their senders: by path, abstract, without a name, connected
 * and not. Ends that are shut down; a descriptor by O_PATH of the file of a bound socket.
 */
#include "wl.h"
static int named(const char *name, int len, struct sockaddr_un *a)
{
	int fd = socket(AF_UNIX, SOCK_DGRAM, 0);
	memset(a, 0, sizeof(*a));
	a->sun_family = AF_UNIX;
	memcpy(a->sun_path, name, len);
	MUST(fd >= 0 && !bind(fd, (void *)a, 2 + len));
	return fd;
}
static void expect(int fd, const char *text, const char *sender, int len)
{
	char b[64];
	struct sockaddr_un a;
	socklen_t al = sizeof(a);
	int n = recvfrom(fd, b, sizeof(b), MSG_DONTWAIT, (void *)&a, &al);
	MUST(n == (int)strlen(text) && !memcmp(b, text, n));
	if (len == 0 ? al > 2 : (int)al < 2 + len || memcmp(a.sun_path, sender, len))
		fail("%s is from an address of %d bytes: %s", text, (int)al, a.sun_path + (len && !*sender));
}
int main(int argc, char **argv)
{
	struct sockaddr_un to, a;
	struct stat by_path, by_fd;
	int pair[2], wr[2];
	char b[8];
	wl_start(argc, argv);
	unlink("receiver");
	unlink("sender");
	int in = named("receiver", 8, &to);
	int path = named("sender", 6, &a);
	int abstract = named("\0crust-sender", 13, &a);
	int connected = named("\0crust-connected", 16, &a);
	int nameless = socket(AF_UNIX, SOCK_DGRAM, 0);
	socklen_t len = 2 + 8;
	MUST(sendto(path, "one", 3, 0, (void *)&to, len) == 3);
	MUST(sendto(abstract, "two", 3, 0, (void *)&to, len) == 3);
	MUST(sendto(nameless, "three", 5, 0, (void *)&to, len) == 5);
	MUST(!connect(connected, (void *)&to, len) && send(connected, "four", 4, 0) == 4);
	MUST(sendto(path, "five", 4, 0, (void *)&to, len) == 4);
	int looks = open("receiver", O_PATH);
	MUST(looks >= 0);
	MUST(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair) && !socketpair(AF_UNIX, SOCK_SEQPACKET, 0, wr));
	MUST(write(pair[0], "left", 4) == 4 && !shutdown(pair[0], SHUT_WR));
	MUST(!shutdown(wr[1], SHUT_RDWR));
	wl_wait();
	expect(in, "one", "sender", 6);
	expect(in, "two", "\0crust-sender", 13);
	expect(in, "three", "", 0);
	expect(in, "four", "\0crust-connected", 16);
	expect(in, "five", "sender", 6);
	MUST(sendto(path, "six", 3, 0, (void *)&to, len) == 3);
	expect(in, "six", "sender", 6);
	MUST(!stat("receiver", &by_path) && !fstat(looks, &by_fd) && by_path.st_ino == by_fd.st_ino);
	MUST(read(pair[1], b, 8) == 4 && read(pair[1], b, 8) == 0 && write(pair[1], "back", 4) == 4);
	MUST(read(pair[0], b, 8) == 4 && send(pair[0], "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
	MUST(read(wr[0], b, 8) == 0 && send(wr[0], "x", 1, MSG_NOSIGNAL) < 0 && errno == EPIPE);
	wl_ok();
}
