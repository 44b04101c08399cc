// Package trust keeps what the hosts of a pool trust: trust anchors, issuers below them, and pinned certificates, for each purpose.
package trust
