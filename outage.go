package flyregion

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Reads leave a replica that is too far behind only for a primary that can be reached. While the primary is down no replica
// gets anything from it, and after MaxReplicaLag all of them are too far behind.

const (
	// answerTime is how long an answer of the primary shows that it can be reached. It is shorter if MaxReplicaLag is.
	answerTime = time.Second
	// contactTimeout bounds an attempt to connect to the primary.
	contactTimeout = 5 * time.Second
)

// reachable reports whether the primary can be reached, for a read that no replica serves otherwise. If that is not known it
// tries to connect. While the primary is down that is tried again in the background, and no read waits for it.
func (p *primary) reachable(ctx context.Context) bool {
	c := &p.contact
	if !c.health.good() {
		if c.health.claimProbe() {
			p.tryContact()
		}
		return false
	}
	if at := time.Duration(c.answeredAt.Load()); at > 0 && uptime()-at < min(answerTime, p.maxLag/4) {
		return true
	}
	attempt := p.tryContact()
	select {
	case <-attempt.done:
		return attempt.err == nil
	case <-ctx.Done():
		return true // the read returns its context's error there
	}
}

// tryContact returns the attempt that is under way. If there is none it begins one.
func (p *primary) tryContact() *contactAttempt {
	c := &p.contact
	c.mu.Lock()
	defer c.mu.Unlock()

	if c.attempt != nil {
		return c.attempt
	}
	a := &contactAttempt{done: make(chan struct{})}
	if c.closed {
		a.err = errClosedPool
		close(a.done)
		return a
	}
	if c.ctx == nil {
		c.ctx, c.stop = context.WithCancel(context.Background())
	}
	c.attempt = a
	c.done.Go(func() {
		began := uptime()
		a.err = p.connectOnce(c.ctx)
		if a.err != nil && time.Duration(c.answeredAt.Load()) > began {
			a.err = nil // a statement was answered meanwhile
		}
		if a.err == nil {
			c.answered()
		} else {
			c.health.fail()
		}
		c.mu.Lock()
		c.attempt = nil
		c.mu.Unlock()
		close(a.done)
	})
	return a
}

// connectOnce opens a connection to the primary and closes it. It uses none of the pool's: all of those may be in use, by
// statements that a primary which has gone silent never answers.
func (p *primary) connectOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, contactTimeout)
	defer cancel()
	config := p.pool.Config()
	if err := config.BeforeConnect(ctx, config.ConnConfig); err != nil { // which open has set
		return err
	}
	conn, err := pgx.ConnectConfig(ctx, config.ConnConfig)
	var pgErr *pgconn.PgError
	switch {
	case errors.As(err, &pgErr) && pgErr.Code == "53300": // too_many_connections: the pool has its own
		return nil
	case err != nil:
		return err
	}
	closeConn(conn.PgConn())
	return nil
}
