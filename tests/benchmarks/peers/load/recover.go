package load

import (
	"context"
	"errors"
	"time"
)

const probeEvery = 10 * time.Millisecond

// Recover proposes a command every few milliseconds, without waiting for those before, until one is answered.
func Recover(target Target, within time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	answered := make(chan struct{}, 1)
	probe := [][]byte{command(16)}
	pace := time.NewTicker(probeEvery)
	defer pace.Stop()
	for {
		go func() {
			if target.Propose(ctx, 0, probe) == nil {
				select {
				case answered <- struct{}{}:
				default:
				}
			}
		}()
		select {
		case <-answered:
			return nil
		case <-ctx.Done():
			return errors.New("no command was answered within " + within.String())
		case <-pace.C:
		}
	}
}
