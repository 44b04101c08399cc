package revocation

import (
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/store/settings"
)

// wholeEvery is how often at most a list of more than settings.CRL.WholeUpTo entries is signed again because of
// revocations, where no delta and no partition shows them.
const wholeEvery = 5 * time.Minute

// standing is all that decides which lists of an issuer are due.
type standing struct {
	issuer *ca.Issuer
	lists  map[Scope]*List // the current ones
	last   int64           // the newest change
	dirty  map[int]int64   // the newest change of partitions in which something may have changed
	wanted bool            // an operator asked for a complete list
}

// due returns the lists that are to be made at now, in the order in which they should be: what shows a revocation soonest
// comes first, but a delta needs a complete list to start from. next is when to look again if nothing happens before.
func (st *standing) due(set *settings.Settings, now time.Time) (orders []order, next time.Time) {
	next = now.Add(time.Hour)
	complete := st.lists[Complete]
	wait := func(l *List) bool {
		at := l.ThisUpdate.Add(refresh(set, st.issuer, l.Scope))
		if at.Before(next) && at.After(now) {
			next = at
		}
		return at.After(now)
	}
	if st.issuer.CRL.Delta && complete != nil {
		delta := st.lists[Delta]
		if scheduled := delta == nil || st.wanted || !wait(delta); scheduled || st.last > delta.change {
			orders = append(orders, order{scope: Delta, scheduled: scheduled})
		}
	}
	if set.PublicURL != "" && st.issuer.CRL.Partitions > 0 {
		for n := range st.issuer.CRL.Partitions {
			l := st.lists[Partition(n)]
			if scheduled := l == nil || !wait(l); scheduled || st.dirty[n] > l.change {
				orders = append(orders, order{scope: Partition(n), scheduled: scheduled})
			}
		}
	}
	switch {
	case complete == nil || st.wanted || !wait(complete):
		orders = append(orders, order{scope: Complete, scheduled: true})
	case st.last > complete.change && st.whole(set, complete, now, &next):
		orders = append(orders, order{scope: Complete})
	}
	return orders, next
}

// whole decides whether revocations are worth signing a complete list again before its time.
func (st *standing) whole(set *settings.Settings, complete *List, now time.Time, next *time.Time) bool {
	pending := st.last - complete.change
	if complete.Entries+pending <= set.CRL.WholeUpTo {
		return true
	}
	if st.issuer.CRL.Delta || st.issuer.CRL.Partitions > 0 {
		// The delta shows them, until it has grown as long as a list may be.
		return pending > set.CRL.WholeUpTo && now.Sub(complete.ThisUpdate) >= wholeEvery
	}
	at := complete.ThisUpdate.Add(wholeEvery)
	if at.After(now) && at.Before(*next) {
		*next = at
	}
	return !at.After(now)
}

// long reports whether making the list may take seconds, so that it must not hold up the others.
func (st *standing) long(o order, set *settings.Settings) bool {
	complete := st.lists[Complete]
	return o.scope == Complete && (complete == nil || complete.Entries > set.CRL.WholeUpTo)
}
