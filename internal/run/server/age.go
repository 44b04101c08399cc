package server

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"time"

	"chancery/internal/store/db"
	"chancery/internal/store/keys"
)

// ageHeader is how many seconds old what an answer was read from may be. It is there only while the node answers from a standby
// that its primary does not feed, or from memory. No standard field says this: Age (RFC 9111 §5.1) is counted against max-age by
// every cache on the way, which would then keep nothing that is good until its nextUpdate, and Warning is obsolete (§5.5).
const ageHeader = "Chancery-Data-Age"

// aged adds ageHeader to the answers of a handler.
func aged(d *db.DB, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if age := d.Age(time.Now()); age > 0 {
			w.Header().Set(ageHeader, strconv.FormatInt(int64((age+time.Second-1)/time.Second), 10))
		}
		next.ServeHTTP(w, r)
	})
}

// reads says what a node can answer that only reads: an error where that is nothing but what is in memory.
func (n *node) reads(ctx context.Context) (string, error) {
	now := time.Now()
	if _, err := n.services.DB.ReadAge(ctx, now); err != nil {
		return "", err
	}
	if away := n.services.DB.Away(); away != nil {
		return away.Error() + ", from data " + n.services.DB.Age(now).Round(time.Second).String() + " old", nil
	}
	if unread := n.services.DB.Unread(); unread != nil {
		return unread.Error(), nil // it reads at the primary
	}
	if age := n.services.DB.Age(now); age > 0 {
		return "the standby is " + age.Round(time.Second).String() + " behind", nil
	}
	return "", nil
}

// learnSubsystems reads which subsystems this node runs. It never changes.
func (n *node) learnSubsystems(ctx context.Context) error {
	all, err := n.services.Keys.Recipients(ctx)
	if err != nil {
		return err
	}
	n.subsystems = []keys.Subsystem{keys.SubsystemCA, keys.SubsystemOCSP} // of a node that is no recipient: it can open nothing
	if i := slices.IndexFunc(all, func(r keys.Recipient) bool { return r.ID == n.services.Keys.Self() }); i >= 0 {
		n.subsystems = all[i].Subsystems
	}
	return nil
}

func (n *node) runs(s keys.Subsystem) bool { return slices.Contains(n.subsystems, s) }
