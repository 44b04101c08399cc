package revocation

import (
	"slices"
	"testing"
	"time"

	"chancery/internal/authority/ca"
	"chancery/internal/store/settings"
)

func TestDue(t *testing.T) {
	now := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	set := settings.Defaults()
	set.PublicURL = publicURL
	made := func(ago time.Duration, change, entries int64) *List {
		return &List{ThisUpdate: now.Add(-ago), NextUpdate: now.Add(30 * 24 * time.Hour), change: change, Entries: entries}
	}
	delta, parted := ca.CRLMode{Delta: true}, ca.CRLMode{Partitions: 3}
	for what, c := range map[string]struct {
		mode   ca.CRLMode
		lists  map[Scope]*List
		last   int64
		dirty  map[int]int64
		wanted bool
		want   []Scope
	}{
		"short by wish":             {lists: map[Scope]*List{Complete: {ThisUpdate: now.Add(-time.Hour), NextUpdate: now.Add(time.Hour), change: 5}}, last: 5, want: []Scope{Complete}},
		"nothing yet":               {want: []Scope{Complete}},
		"nothing yet, delta":        {mode: delta, want: []Scope{Complete}},
		"fresh":                     {lists: map[Scope]*List{Complete: made(time.Hour, 5, 5)}, last: 5},
		"revoked":                   {lists: map[Scope]*List{Complete: made(time.Hour, 5, 5)}, last: 6, want: []Scope{Complete}},
		"revoked, at the schedule":  {mode: ca.CRLMode{Scheduled: true}, lists: map[Scope]*List{Complete: made(time.Hour, 5, 5)}, last: 6},
		"revoked, and the schedule": {mode: ca.CRLMode{Scheduled: true}, lists: map[Scope]*List{Complete: made(24*time.Hour, 5, 5)}, last: 6, want: []Scope{Complete}},
		"revoked, and asked for":    {mode: ca.CRLMode{Scheduled: true}, lists: map[Scope]*List{Complete: made(0, 5, 5)}, last: 6, wanted: true, want: []Scope{Complete}},
		"a day old":                 {lists: map[Scope]*List{Complete: made(24*time.Hour, 5, 5)}, last: 5, want: []Scope{Complete}},
		"wanted":                    {lists: map[Scope]*List{Complete: made(0, 5, 5)}, last: 5, wanted: true, want: []Scope{Complete}},
		"long, just made":           {lists: map[Scope]*List{Complete: made(time.Minute, 5, 20_000)}, last: 6},
		"long, five minutes":        {lists: map[Scope]*List{Complete: made(5*time.Minute, 5, 20_000)}, last: 6, want: []Scope{Complete}},
		"at the limit":              {lists: map[Scope]*List{Complete: made(time.Minute, 5, 9_999)}, last: 6, want: []Scope{Complete}},
		"delta missing":             {mode: delta, lists: map[Scope]*List{Complete: made(time.Hour, 5, 5)}, last: 5, want: []Scope{Delta}},
		"delta and short":           {mode: delta, lists: map[Scope]*List{Complete: made(time.Hour, 5, 5), Delta: made(time.Hour, 5, 0)}, last: 6, want: []Scope{Delta, Complete}},
		"delta and long":            {mode: delta, lists: map[Scope]*List{Complete: made(time.Hour, 5, 20_000), Delta: made(time.Hour, 5, 0)}, last: 6, want: []Scope{Delta}},
		"delta and long, many":      {mode: delta, lists: map[Scope]*List{Complete: made(time.Hour, 5, 20_000), Delta: made(time.Hour, 5, 0)}, last: 20_000, want: []Scope{Delta, Complete}},
		"delta and ended":           {mode: delta, lists: map[Scope]*List{Complete: {ThisUpdate: now.Add(-31 * 24 * time.Hour), NextUpdate: now.Add(-time.Hour), change: 5}, Delta: made(time.Hour, 5, 0)}, last: 6, want: []Scope{Complete}},
		"delta half its life":       {mode: delta, lists: map[Scope]*List{Complete: made(13*time.Hour, 5, 5), Delta: made(12*time.Hour, 5, 0)}, last: 5, want: []Scope{Delta}},
		"partitions missing":        {mode: parted, lists: map[Scope]*List{Complete: made(time.Hour, 5, 5)}, last: 5, want: []Scope{Partition(0), Partition(1), Partition(2)}},
		"partition with a change":   {mode: parted, lists: map[Scope]*List{Complete: made(time.Hour, 5, 20_000), Partition(0): made(0, 5, 5), Partition(1): made(0, 5, 5), Partition(2): made(0, 5, 5)}, last: 7, dirty: map[int]int64{1: 7}, want: []Scope{Partition(1)}},
		"change before routine":     {mode: parted, lists: map[Scope]*List{Complete: made(25*time.Hour, 5, 20_000), Partition(1): made(0, 5, 5), Partition(2): made(0, 5, 5)}, last: 7, dirty: map[int]int64{2: 7}, want: []Scope{Partition(2), Partition(0), Complete}},
		"partition has it, not all": {mode: parted, lists: map[Scope]*List{Complete: made(time.Hour, 5, 5), Partition(0): made(0, 7, 5), Partition(1): made(0, 7, 5), Partition(2): made(0, 7, 5)}, last: 7, dirty: map[int]int64{1: 7}, want: []Scope{Complete}},
		"partition old and changed": {mode: parted, lists: map[Scope]*List{Complete: made(time.Hour, 7, 5), Partition(0): made(13*time.Hour, 5, 5), Partition(1): made(13*time.Hour, 5, 5), Partition(2): made(0, 5, 5)}, last: 7, dirty: map[int]int64{1: 7}, want: []Scope{Partition(1), Partition(0)}},
	} {
		for scope, l := range c.lists {
			l.Scope = scope
		}
		st := &standing{issuer: &ca.Issuer{CRL: c.mode}, lists: c.lists, last: c.last, dirty: c.dirty, wanted: c.wanted}
		orders, next := st.due(&set, now)
		var got []Scope
		for _, o := range orders {
			got = append(got, o.scope)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v are due, not %v", what, got, c.want)
		}
		if next.Before(now) || next.After(now.Add(time.Hour)) {
			t.Errorf("%s: look again at %v", what, next)
		}
	}
	// Ten thousand partitions do not hold up what was revoked meanwhile.
	st := &standing{issuer: &ca.Issuer{CRL: ca.CRLMode{Partitions: 10_000}}}
	if orders, next := st.due(&set, now); len(orders) != routineAtOnce+1 || orders[routineAtOnce].scope != Complete || !next.Equal(now) {
		t.Errorf("%d lists at once, the last %v, again at %v", len(orders), orders[len(orders)-1], next)
	}
}

func TestScopes(t *testing.T) {
	for text, want := range map[string]bool{"complete": true, "delta": true, "0": true, "9999": true, "": false, "-1": false, "+1": false, "01": false, "x": false, "1.crl": false} {
		if _, err := ParseScope(text); (err == nil) != want {
			t.Errorf("scope %q: %v", text, err)
		}
	}
}
