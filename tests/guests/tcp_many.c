/* As many established tcp pairs over loopback as the second argument says, each with bytes waiting. */
#include "wl.h"
#include <arpa/inet.h>
#include <netinet/in.h>
int main(int argc, char **argv)
{
	struct sockaddr_in at = { .sin_family = AF_INET };
	socklen_t l = sizeof(at);
	int n = argc > 2 ? atoi(argv[2]) : 20, *c = calloc(n, sizeof(int)), *s = calloc(n, sizeof(int)), got;
	wl_start(argc, argv);
	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	int ls = socket(AF_INET, SOCK_STREAM, 0);
	MUST(!bind(ls, (void *)&at, sizeof(at)) && !listen(ls, 10) && !getsockname(ls, (void *)&at, &l));
	for (int i = 0; i < n; i++) {
		c[i] = socket(AF_INET, SOCK_STREAM, 0);
		MUST(!connect(c[i], (void *)&at, sizeof(at)) && (s[i] = accept(ls, NULL, NULL)) >= 0);
		MUST(write(c[i], &i, sizeof(i)) == sizeof(i));
	}
	wl_wait();
	for (int i = 0; i < n; i++) {
		MUST(read(s[i], &got, sizeof(got)) == sizeof(got) && got == i);
		MUST(write(s[i], &i, sizeof(i)) == sizeof(i) && read(c[i], &got, sizeof(got)) == sizeof(got) && got == i);
	}
	wl_ok();
}
