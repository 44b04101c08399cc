package revocation

import (
	"slices"
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

// routineAtOnce is how many lists are made only because they are old, before it is looked again what was revoked.
const routineAtOnce = 32

// due returns the lists that are to be made at now, in the order in which they should be: first what shows a revocation.
// next is when to look again if nothing happens before.
func (st *standing) due(set *settings.Settings, now time.Time) (orders []order, next time.Time) {
	var routine []order
	next = now.Add(time.Hour)
	consider := func(scope Scope, asked, changed bool) {
		l := st.lists[scope]
		changed = changed && !st.issuer.CRL.Scheduled
		at := now
		if l != nil && !asked {
			at = l.RenewAt(set, st.issuer)
		}
		switch {
		case !at.After(now) && changed && l != nil: // both; the revocation does not wait its turn
			orders = append(orders, order{scope: scope, scheduled: true})
		case !at.After(now):
			routine = append(routine, order{scope: scope, scheduled: true})
		case changed:
			orders = append(orders, order{scope: scope})
		case at.Before(next):
			next = at
		}
	}
	complete := st.lists[Complete]
	// A delta needs a base that is in force; where that has ended the complete list is due, and comes first.
	if l := st.lists[Delta]; st.issuer.CRL.Delta && complete != nil && complete.NextUpdate.After(now) {
		consider(Delta, st.wanted, l == nil || st.last > l.change)
	}
	if set.PublicURL != "" {
		for n := range st.issuer.CRL.Partitions {
			l := st.lists[Partition(n)]
			consider(Partition(n), false, l != nil && st.dirty[n] > l.change)
		}
	}
	consider(Complete, st.wanted, complete != nil && st.last > complete.change && st.whole(set, complete, now, &next))
	if len(routine) > routineAtOnce {
		// The complete list, which is the last one, is made with the first of them.
		routine = append(routine[:routineAtOnce:routineAtOnce], routine[len(routine)-1])
		next = now
	}
	return append(orders, routine...), next
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

// together splits orders into those that are made at one moment: the complete list and the delta where both are due, and
// every other list by itself. A list whose times an operator chose is of another moment than the rest.
func together(orders []order) [][]order {
	isPair := slices.ContainsFunc(orders, func(o order) bool { return o.scope == Delta }) &&
		slices.ContainsFunc(orders, func(o order) bool {
			return o.scope == Complete && o.wish.ThisUpdate.IsZero()
		})
	var groups [][]order
	pair := -1
	for _, o := range orders {
		switch inPair := isPair && (o.scope == Delta || o.scope == Complete); {
		case inPair && pair >= 0:
			groups[pair] = append(groups[pair], o)
		case inPair:
			pair = len(groups)
			fallthrough
		default:
			groups = append(groups, []order{o})
		}
	}
	return groups
}

// long reports whether making the list may take seconds, so that it must not hold up the others.
func (st *standing) long(o order, set *settings.Settings) bool {
	complete := st.lists[Complete]
	return o.scope == Complete && (complete == nil || complete.Entries > set.CRL.WholeUpTo)
}
