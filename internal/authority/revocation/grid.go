package revocation

import (
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/fault"
)

// Answers follow a grid of time, so that all nodes say the same at the same time, whoever was asked first: thisUpdate is the
// beginning of the period, or the last change of the certificate's status where that is later. RFC 6960 §2.4 wants a time at which
// the status is known to have been correct, and each of these is one.
const (
	mostPeriod  = 5 * time.Minute
	leastPeriod = time.Second // all that the format can say
	periods     = 144         // in the validity of an answer

	// behind is how far a standby may be behind that counts as if it were not. Every node takes that off, or one that is behind
	// would say that it knows of the first seconds of a period.
	behind = 10 * time.Second
)

// period is a period of answers of one validity. A node signs an answer anew in each, when it is asked for.
type period struct {
	start    time.Time
	validity time.Duration
}

// periodAt is the period to which what is known at a time belongs.
func periodAt(known time.Time, validity time.Duration) period {
	length := min(mostPeriod, max(leastPeriod, (validity/periods).Truncate(time.Second)))
	return period{known.Add(-min(behind, length)).UTC().Truncate(length), validity}
}

// updates are thisUpdate and nextUpdate of what is said of a certificate by a responder whose certificate ends then. It is an error
// where they are past: what is known is too old, since the database is away.
func (p period) updates(status ca.Status, ends, now time.Time) (thisUpdate, nextUpdate time.Time, err error) {
	thisUpdate = p.start
	if changed := status.ChangedAt.UTC().Truncate(time.Second); changed.After(thisUpdate) {
		thisUpdate = changed
	}
	nextUpdate = thisUpdate.Add(p.validity)
	if ends.Before(nextUpdate) {
		nextUpdate = ends.UTC() // nobody could check the answer for longer
	}
	if !now.Before(nextUpdate) {
		err = fault.New(fault.Unavailable, "what is known of the status is of %s, and an answer from then ended at %s",
			thisUpdate.Format(time.RFC3339), nextUpdate.Format(time.RFC3339))
	}
	return thisUpdate, nextUpdate, err
}
