package bench

import "time"

// fleetScale is how much is measured of agents.
type fleetScale struct {
	agentCount    int
	agentPatience time.Duration // for all of them to hold what they shall
	agentSettle   time.Duration // before what is quiet is measured
	agentQuiet    time.Duration // and for how long: longer than a poll, so that each agent polls
	agentLife     time.Duration // of the certificates of a storm
	agentPasses   int           // that change nothing
	agentAlone    time.Duration // until an agent of its own has come to rest
	idleCount     int           // agents that only wait

	rotationCount   int   // hosts whose root is rotated
	reissueCounts   []int // hosts that are re-keyed, pool by pool
	rolloutPatience time.Duration
}

var (
	wholeFleet = fleetScale{agentCount: 1000, agentPatience: 3 * time.Minute, agentSettle: 10 * time.Second, agentQuiet: time.Minute,
		agentLife: 90 * time.Second, agentPasses: 40, agentAlone: 15 * time.Second, idleCount: 10_000,
		rotationCount: 200, reissueCounts: []int{100, 1000, 10_000}, rolloutPatience: 10 * time.Minute}
	quickFleet = fleetScale{agentCount: 100, agentPatience: time.Minute, agentSettle: time.Second, agentQuiet: 5 * time.Second,
		agentLife: 30 * time.Second, agentPasses: 10, agentAlone: 5 * time.Second, idleCount: 500,
		rotationCount: 40, reissueCounts: []int{50, 100, 500}, rolloutPatience: 3 * time.Minute}
	tinyFleet = fleetScale{agentCount: 25, agentPatience: 8 * time.Minute, agentQuiet: time.Second,
		agentLife: 36 * time.Second, agentPasses: 3, agentAlone: time.Second, idleCount: 30,
		rotationCount: 6, reissueCounts: []int{5, 10, 20}, rolloutPatience: 8 * time.Minute}
)
