/*
 * Standard input is from outside: a pipe, a socket or a file. When asked for its verdict the guest
 * reads "hello" from it and, if told "reply", writes "reply" into it. Given a path behind that, it
 * is connected to the datagram socket there and sends "datagram".
 */
#include "wl.h"
int main(int argc, char **argv)
{
	char b[16];
	int out = -1;
	wl_start(argc, argv);
	if (argc > 3) {
		struct sockaddr_un a = { .sun_family = AF_UNIX };
		snprintf(a.sun_path, sizeof(a.sun_path), "%s", argv[3]);
		out = socket(AF_UNIX, SOCK_DGRAM, 0);
		MUST(out >= 0 && !connect(out, (void *)&a, sizeof(a)));
	}
	wl_wait();
	if (strcmp(argv[2], "nothing")) {
		int n = read(0, b, sizeof(b));
		if (n != 5 || memcmp(b, "hello", 5))
			fail("read %d bytes: %.*s", n, n > 0 ? n : 0, b);
	}
	if (!strcmp(argv[2], "reply"))
		MUST(write(0, "reply", 5) == 5);
	if (out >= 0)
		MUST(send(out, "datagram", 8, 0) == 8);
	wl_ok();
}
