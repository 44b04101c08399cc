// Package chaos proves that an authority of three nodes loses nothing. It starts PostgreSQL under Patroni (package cluster) and three
// nodes as processes, each on the machine of one member, joined by the commands that an operator uses; has clients issue, revoke, ask OCSP
// and fetch CRLs; and meanwhile kills, freezes and cuts off nodes, databases and whole machines, in an order that a seed repeats.
//
// What each client did is written to a file as it happens, a line of JSON for each call (history.go). When all is healed, Check (check.go)
// reads that and what the authority then says of itself, and finds where the two contradict each other. Check is a function of these
// two and nothing else: its tests show it a broken history for each of its rules.
//
// What is judged, and what is not: a call has an outcome, acknowledged, refused or unknown, by all of its attempts together. An attempt that
// was answered by a refusal other than Unavailable did nothing. Everything else without a certificate in it is unknown, also where
// the node said that nothing was changed, unless every attempt was told so. Time is this machine's one clock. An answer may be as much
// older than its time as the node says by Chancery-Data-Age, and by Behind where it says nothing. One request that is left without an answer is
// judged by nothing; all that a node leaves while it lives, and the member beside it, are (silence.go). The time from a strike until somebody
// issues again is held against its bound where no other strike fell together with it; where one did, both are told (bounds.go).
package chaos
