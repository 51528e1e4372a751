/* Options of sockets that are one int. */
#ifndef SOCKOPT_H
#define SOCKOPT_H
#include "wl.h"

static inline int set(int fd, int level, int name, int v)
{
	return !setsockopt(fd, level, name, &v, sizeof(v));
}

static inline int opt(int fd, int level, int name)
{
	int v = -1;
	socklen_t l = sizeof(v);
	MUST(!getsockopt(fd, level, name, &v, &l));
	return v;
}

#endif
