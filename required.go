package flyregion

import "context"

// required returns what a read on the route has to see. If that is not known the read goes to the primary, unless it may not.
func (p *primary) required(ctx context.Context, rt *route) (sessionState, error) {
	switch rt.wants {
	case wantsAny:
		return sessionState{}, nil
	case wantsSession:
		return p.requiredOfSession(ctx, rt)
	}
	return p.requiredOfAll(ctx, rt)
}

// requiredOfSession is required for a read that has to see what its session has written. If the position of the session's last
// write is not known, the read goes to the primary: it takes one round trip as the question would, sees everything, and tells
// the position too.
func (p *primary) requiredOfSession(ctx context.Context, rt *route) (sessionState, error) {
	session := p.sessionOf(rt)
	state := p.written(session)
	switch {
	case !rt.mayFallBack() || p.covers(state):
		return p.positionOf(ctx, session)
	case p.stays(session):
		rt.toPrimary(becauseSooner)
	default:
		rt.fallBack(becauseUnknown, notCoveredError(state))
	}
	return sessionState{}, nil
}

// requiredOfAll is required for a read that has to see what everybody has written, now or until a time ago. If the primary does
// not tell its position the read goes there.
func (p *primary) requiredOfAll(ctx context.Context, rt *route) (state sessionState, err error) {
	var own sessionState
	if rt.wants == wantsRecent {
		state, err = p.recentFlush(ctx, rt.maxLag)
	} else {
		if own, err = p.requiredOfSession(ctx, rt); err != nil || rt.to == targetPrimary {
			return own, err
		}
		state, err = p.currentFlush(ctx)
	}
	switch {
	case err != nil && (ctx.Err() != nil || !rt.mayFallBack()):
		return sessionState{}, err
	case err != nil:
		rt.fallBack(becauseUnknown, err)
		return sessionState{}, nil
	case own.position > 0 && (own.position > state.position || own.origin != state.origin):
		return own, nil // the session has written asynchronously, or the primary has changed just now
	}
	return state, nil
}

// outdate notes that what a read has to see was found to be outdated, in the sense of verdict.
func (p *primary) outdate(rt *route, state sessionState) {
	if rt.wants == wantsRecent {
		p.flushes.forget()
	}
	p.sessionOf(rt).outdate(state)
}

// sessionOf returns the session that a route reads in: the context's, or else the pool's.
func (p *primary) sessionOf(rt *route) *Session {
	if rt.session != nil {
		return rt.session
	}
	return &p.session
}
