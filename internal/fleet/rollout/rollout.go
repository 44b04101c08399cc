// Package rollout changes certificates and trust over the hosts of a pool in stages and waves, each gated on what agents observed.
package rollout
