// One of three dragonboat hosts, under the load of Drakkar's benchmark, used as an application would that
// embeds the library. `peers/load` says which orders it takes.
package main

import (
	"context"
	"errors"
	"io"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lni/dragonboat/v4"
	"github.com/lni/dragonboat/v4/client"
	"github.com/lni/dragonboat/v4/config"
	"github.com/lni/dragonboat/v4/logger"
	sm "github.com/lni/dragonboat/v4/statemachine"

	"peers/load"
)

// counter counts its commands, like the state machine of Drakkar's rows.
type counter struct{ n uint64 }

func (c *counter) Lookup(interface{}) (interface{}, error) { return c.n, nil }
func (c *counter) Update(sm.Entry) (sm.Result, error)      { c.n++; return sm.Result{Value: c.n}, nil }
func (c *counter) Close() error                            { return nil }
func (c *counter) SaveSnapshot(w io.Writer, _ sm.ISnapshotFileCollection, _ <-chan struct{}) error {
	_, err := w.Write([]byte(strconv.FormatUint(c.n, 10)))
	return err
}
func (c *counter) RecoverFromSnapshot(io.Reader, []sm.SnapshotFile, <-chan struct{}) error {
	return errors.New("no run takes a snapshot, so none is recovered from")
}

type host struct {
	nodes    *dragonboat.NodeHost
	replica  uint64
	sessions []*client.Session // of shard 1, 2, ...
	find     sync.Once
	led      []*client.Session // those led here, if there are many shards, when the load began
	turn     atomic.Uint64
}

func start(who load.Who) (load.Host, error) {
	nodes, err := dragonboat.NewNodeHost(config.NodeHostConfig{
		NodeHostDir: who.DataDir, WALDir: who.DataDir, RTTMillisecond: 100, RaftAddress: who.Members[who.Replica],
		Expert: config.ExpertConfig{LogDB: config.GetSmallMemLogDBConfig()},
	})
	if err != nil {
		return nil, err
	}
	// Elections and heartbeats as by Drakkar's defaults: 1 to 2 s, and 0.1 s.
	h := &host{nodes: nodes, replica: who.Replica}
	for shard := uint64(1); shard <= max(who.Options.Shards, 1); shard++ {
		err = nodes.StartReplica(who.Members, false, func(uint64, uint64) sm.IStateMachine { return &counter{} }, config.Config{
			ReplicaID: who.Replica, ShardID: shard, ElectionRTT: 10, HeartbeatRTT: 1, CheckQuorum: true, PreVote: true})
		if err != nil {
			nodes.Close()
			return nil, err
		}
		h.sessions = append(h.sessions, nodes.GetNoOPSession(shard))
	}
	return h, nil
}

// Leads returns whether all shards have a leader, and this host leads some.
func (h *host) Leads() bool {
	led := 0
	for _, session := range h.sessions {
		leader, _, known, err := h.nodes.GetLeaderID(session.ShardID)
		if err != nil || !known {
			return false
		}
		if leader == h.replica {
			led++
		}
	}
	return led > 0
}

// session returns that of the only shard, or of those that this host leads the next in turn.
func (h *host) session() *client.Session {
	if len(h.sessions) == 1 {
		return h.sessions[0]
	}
	h.find.Do(func() {
		for _, session := range h.sessions {
			if leader, _, _, err := h.nodes.GetLeaderID(session.ShardID); err == nil && leader == h.replica {
				h.led = append(h.led, session)
			}
		}
	})
	return h.led[h.turn.Add(1)%uint64(len(h.led))]
}

func (h *host) Stop() { h.nodes.Close() }

// Propose proposes all commands before it waits for the first: dragonboat has no call that takes a list.
func (h *host) Propose(ctx context.Context, _ int, commands [][]byte) error {
	session := h.session()
	if len(commands) == 1 {
		_, err := h.nodes.SyncPropose(ctx, session, commands[0])
		return err
	}
	deadline, _ := ctx.Deadline()
	timeout := time.Until(deadline)
	var failed error
	var proposed []*dragonboat.RequestState
	for _, command := range commands {
		state, err := h.nodes.Propose(session, command, timeout)
		if err != nil {
			failed = err
			break
		}
		proposed = append(proposed, state)
	}
	for _, state := range proposed {
		if result := <-state.ResultC(); !result.Completed() {
			failed = errors.New("a command of a list was dropped, refused, or not answered in time")
		}
		state.Release()
	}
	return failed
}

func (h *host) Read(ctx context.Context, _ int) error {
	_, err := h.nodes.SyncRead(ctx, h.session().ShardID, nil)
	return err
}

func main() {
	for _, name := range []string{"raft", "rsm", "transport", "grpc", "dragonboat", "logdb", "config"} {
		logger.GetLogger(name).SetLevel(logger.ERROR)
	}
	load.Serve(start)
}
