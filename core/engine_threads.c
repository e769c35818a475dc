/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Helper threads of one worker: they run file operations that would block it, all of them under the epoll engine, only VS_OP_CALL under
 * io_uring. They know nothing of stores, and they never run done(): ended operations go back on a lock-free stack that the worker empties.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "engine.h"

static ssize_t perform_once(struct vs_op *op)
{
	switch (op->kind) {
	case VS_OP_READV:
		return preadv2(op->fd, op->iov, op->niov, vs_op_offset(op), (int)op->rw_flags);
	case VS_OP_WRITEV:
		return pwritev2(op->fd, op->iov, op->niov, vs_op_offset(op), (int)op->rw_flags);
	case VS_OP_FDATASYNC:
		return fdatasync(op->fd);
	case VS_OP_FALLOCATE:
		return fallocate(op->fd, op->mode, vs_op_offset(op), (off_t)op->length);
	default:
		errno = EINVAL;
		return -1;
	}
}

static void perform(struct vs_op *op)
{
	if (op->kind == VS_OP_CALL) {
		op->call(op);
		return;
	}
	do {
		op->result = perform_once(op);
	} while (op->result < 0 && errno == EINTR);
	if (op->result < 0)
		op->result = -errno;
}

void vs_io_pool_end(struct vs_io_pool *pool, struct vs_op *op)
{
	struct vs_op *top = atomic_load_explicit(&pool->done, memory_order_relaxed);
	uint64_t one = 1;

	do {
		op->next = top;
	} while (!atomic_compare_exchange_weak(&pool->done, &top, op));
	/*
	 * Sequentially consistent on both sides: either we see that the worker is about to sleep, or it sees what we pushed. A full counter
	 * (-EAGAIN) is as good as a write.
	 */
	if (atomic_load(&pool->sleeping) && atomic_exchange(&pool->sleeping, 0))
		while (write(pool->source.fd, &one, sizeof(one)) < 0 && errno == EINTR)
			;
}

static void *helper(void *arg)
{
	struct vs_io_pool *pool = arg;

	pthread_mutex_lock(&pool->lock);
	for (;;) {
		struct vs_op *op = pool->head;

		if (op) {
			pool->head = op->next;
			if (!pool->head)
				pool->tail = &pool->head;
			pthread_mutex_unlock(&pool->lock);
			perform(op);
			vs_io_pool_end(pool, op);
			pthread_mutex_lock(&pool->lock);
			continue;
		}
		if (pool->stop)
			break;
		pool->idle++;
		pthread_cond_wait(&pool->work, &pool->lock);
		pool->idle--;
	}
	pthread_mutex_unlock(&pool->lock);
	return NULL;
}

static void pool_ready(struct vs_worker *w, struct vs_source *s, uint32_t events)
{
	uint64_t n;

	(void)w;
	(void)events;
	/* reap takes the stack anyway; this only empties the eventfd. */
	while (read(s->fd, &n, sizeof(n)) < 0 && errno == EINTR)
		;
}

static int start_threads(struct vs_io_pool *pool, const struct vs_worker *w)
{
	uint32_t want = w->core ? w->core->config.io_threads : 0;
	char name[16];
	sigset_t all, old;
	int err = 0;

	if (!want)
		want = VS_IO_THREADS_DEFAULT;
	want = vs_min(want, (uint32_t)VS_IO_THREADS_MAX);
	/* Signals belong to the control thread; a fault that a call meets is handled where it happens. */
	sigfillset(&all);
	sigdelset(&all, SIGBUS);
	sigdelset(&all, SIGSEGV);
	sigdelset(&all, SIGFPE);
	sigdelset(&all, SIGILL);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	while (pool->nthreads < want) {
		err = pthread_create(&pool->threads[pool->nthreads], NULL, helper, pool);
		if (err)
			break;
		snprintf(name, sizeof(name), "vs-io-%u.%u", w->index % 1000, pool->nthreads);
		pthread_setname_np(pool->threads[pool->nthreads++], name);
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	/* Fewer than wanted are slower, not wrong. */
	return pool->nthreads ? 0 : -err;
}

int vs_io_pool_init(struct vs_io_pool *pool, const struct vs_worker *w)
{
	int err;

	/* Not done: an op that failed because an earlier init failed may still be there. */
	pool->head = NULL;
	pool->tail = &pool->head;
	pool->idle = pool->nthreads = 0;
	pool->stop = false;
	pool->source = (struct vs_source){ .events = EPOLLIN, .ready = pool_ready };
	pool->source.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (pool->source.fd < 0)
		return -errno;
	pthread_mutex_init(&pool->lock, NULL);
	pthread_cond_init(&pool->work, NULL);
	pool->ready = true;
	err = start_threads(pool, w);
	if (err)
		vs_io_pool_fini(pool);
	return err;
}

void vs_io_pool_fini(struct vs_io_pool *pool)
{
	if (!pool->ready)
		return;
	pthread_mutex_lock(&pool->lock);
	pool->stop = true;
	pthread_cond_broadcast(&pool->work);
	pthread_mutex_unlock(&pool->lock);
	for (uint32_t i = 0; i < pool->nthreads; i++)
		pthread_join(pool->threads[i], NULL);
	pool->nthreads = 0;
	pthread_cond_destroy(&pool->work);
	pthread_mutex_destroy(&pool->lock);
	close(pool->source.fd);
	pool->ready = false;
}

void vs_io_pool_push(struct vs_io_pool *pool, struct vs_op *head, struct vs_op **tail, uint32_t n)
{
	uint32_t wake;

	pthread_mutex_lock(&pool->lock);
	*pool->tail = head;
	pool->tail = tail;
	wake = vs_min(n, pool->idle);
	for (uint32_t i = 0; i < wake; i++)
		pthread_cond_signal(&pool->work);
	pthread_mutex_unlock(&pool->lock);
}

struct vs_op *vs_io_pool_take(struct vs_io_pool *pool)
{
	struct vs_op *op, *oldest = NULL;

	if (!vs_io_pool_has(pool))
		return NULL;
	op = atomic_exchange(&pool->done, NULL);
	while (op) {
		struct vs_op *next = op->next;

		op->next = oldest;
		oldest = op;
		op = next;
	}
	return oldest;
}

bool vs_io_pool_sleep(struct vs_io_pool *pool)
{
	atomic_store(&pool->sleeping, 1);
	if (!atomic_load(&pool->done))
		return true;
	atomic_store(&pool->sleeping, 0);
	return false;
}

void vs_io_pool_awake(struct vs_io_pool *pool)
{
	atomic_store_explicit(&pool->sleeping, 0, memory_order_relaxed);
}
