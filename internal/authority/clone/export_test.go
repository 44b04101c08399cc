package clone

import "time"

// TakeUpWithin has a service wait for so long for the new holder of a lease.
func (s *Service) TakeUpWithin(d time.Duration) { s.takeUp = d }
