package loop

import (
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// beat tells systemd that the loop got on: at each turn of it, after each placement, and at each step of one. An agent that
// hangs in one of them is started anew. Without systemd, and in a process that is not the agent's alone, it does nothing.
func (a *Agent) beat() {
	if a.alone {
		_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog) // who does not hear it starts the agent anew
	}
}

// beats are the times at which a loop that waits tells that it lives; nil, which never comes, where nobody wants to know.
func (a *Agent) beats() (<-chan time.Time, func()) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval <= 0 || !a.alone {
		return nil, func() {}
	}
	t := time.NewTicker(interval / 3)
	return t.C, t.Stop
}
