package backup

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"chancery/internal/store/audit"
)

// DrillAction is what the audit calls a drill: a backup was restored into a scratch place, and tried.
const DrillAction = "backup.drill"

// Drilled is what the audit keeps of a drill.
type Drilled struct {
	At       time.Time `json:"-"`      // zero where none is known
	Failed   string    `json:"failed"` // why; empty where it passed
	Taken    time.Time `json:"taken"`
	Fresh    bool      `json:"fresh"`
	Recovery bool      `json:"recovery_key_tried"`
	Rows     int64     `json:"rows"`
	Keys     int       `json:"keys"`
	TookMS   int64     `json:"took_ms"`
}

// LastDrill reads the newest drill from the audit.
func LastDrill(ctx context.Context, log *audit.Log) (last Drilled, err error) {
	page, err := log.Search(ctx, audit.Filter{Action: DrillAction, Newest: true}, "", 1)
	if err != nil || len(page.Events) == 0 {
		return last, err
	}
	e := page.Events[0]
	text, err := json.Marshal(e.Detail)
	if err == nil {
		err = json.Unmarshal(text, &last)
	}
	if err != nil {
		return Drilled{}, fmt.Errorf("read the drill of %s: %w", e.Time.UTC().Format(time.RFC3339), err)
	}
	last.At = e.Time
	return last, nil
}

// Wanting says what is wrong with a newest drill where one is wanted this often; empty when nothing is, or none is wanted.
func (d Drilled) Wanting(every time.Duration, now time.Time) string {
	switch {
	case d.Failed != "":
		return fmt.Sprintf("the drill of the backup on %s failed: %s", d.At.UTC().Format(time.RFC3339), d.Failed)
	case every == 0:
		return ""
	case d.At.IsZero():
		return fmt.Sprintf("no backup was tried yet, and backup.drill wants a drill every %s", every)
	case now.Sub(d.At) > every+every/2: // late, and not just about to be made
		return fmt.Sprintf("the last drill of a backup was on %s, and backup.drill wants one every %s", d.At.UTC().Format(time.RFC3339), every)
	}
	return ""
}
