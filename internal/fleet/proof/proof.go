// Package proof has agents try a revoked certificate upon their own consumers, and keeps what they saw.
package proof
