package db

import "strings"

// Session is one of the database's that held what a change needed.
type Session struct {
	PID  int64  // of its server process; 0 of a prepared transaction
	Role string // who logged in
	says string
}

func (s Session) String() string { return s.says }

// holders is within what a suspension is refused with: who had the row.
type holders struct{ sessions []Session }

func (h *holders) Error() string { return "held by " + h.String() }

func (h *holders) String() string {
	var all []string
	for _, s := range h.sessions {
		all = append(all, s.String())
	}
	return strings.Join(all, "; ")
}
