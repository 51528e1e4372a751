/* Descriptors through a unix socket (SCM_RIGHTS), beside a text. */
#ifndef SCM_H
#define SCM_H
#include "wl.h"
#define SCM_MOST 4 /* descriptors a message */
#define SCM_TEXT 64 /* bytes of text */

static inline void send_fds(int by, const int *fds, int n, const char *text)
{
	char room[CMSG_SPACE(sizeof(int) * SCM_MOST)] = { 0 };
	struct iovec v = { (void *)text, strlen(text) };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = room, .msg_controllen = CMSG_SPACE(sizeof(int) * n) };
	struct cmsghdr *h = CMSG_FIRSTHDR(&m);
	h->cmsg_level = SOL_SOCKET;
	h->cmsg_type = SCM_RIGHTS;
	h->cmsg_len = CMSG_LEN(sizeof(int) * n);
	memcpy(CMSG_DATA(h), fds, sizeof(int) * n);
	MUST(sendmsg(by, &m, 0) == (ssize_t)strlen(text));
}
/* The number of descriptors; the text, in SCM_TEXT + 1 bytes, gets an end. */
static inline int recv_fds(int from, int *fds, char *text, int flags)
{
	char room[CMSG_SPACE(sizeof(int) * SCM_MOST)];
	struct iovec v = { text, SCM_TEXT };
	struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof(room) };
	int r = recvmsg(from, &m, flags), n = 0;
	struct cmsghdr *h = CMSG_FIRSTHDR(&m);
	MUST(r >= 0);
	text[r] = 0;
	if (h && h->cmsg_type == SCM_RIGHTS) {
		n = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(fds, CMSG_DATA(h), n * sizeof(int));
	}
	return n;
}
/* One descriptor, beside the text it must come with. */
static inline int recv_fd(int from, const char *text, int flags)
{
	char got[SCM_TEXT + 1];
	int fd;
	MUST(recv_fds(from, &fd, got, flags) == 1 && !strcmp(got, text));
	return fd;
}
#endif
