// The client of one of three etcd members, under the load of Drakkar's benchmark: it reaches the member through gRPC, since
// etcd is no library. `peers/load` says which orders it takes.
package main

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"peers/load"
)

const (
	connections  = 16
	startsWithin = 20 * time.Second
)

// member is what a client knows of its member.
type member struct {
	clients []*clientv3.Client
	address string
}

func start(who load.Who) (load.Host, error) {
	m := &member{address: who.Client}
	for range connections {
		client, err := clientv3.New(clientv3.Config{
			Endpoints: []string{who.Client}, DialTimeout: startsWithin, Logger: zap.NewNop()})
		if err != nil {
			m.Stop()
			return nil, err
		}
		m.clients = append(m.clients, client)
	}
	ctx, cancel := context.WithTimeout(context.Background(), startsWithin)
	defer cancel()
	for {
		_, err := m.clients[0].Status(ctx, m.address)
		if err == nil {
			return m, nil
		}
		if ctx.Err() != nil {
			m.Stop()
			return nil, fmt.Errorf("the member at %s did not answer within %s: %w", m.address, startsWithin, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (m *member) Leads() bool {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	status, err := m.clients[0].Status(ctx, m.address)
	return err == nil && status.Leader == status.Header.MemberId
}

func (m *member) Stop() {
	for _, client := range m.clients {
		_ = client.Close() // the connection's end is not what is measured
	}
}

// Propose puts each command under a key of its own; a list is one transaction, so one entry of etcd's log.
func (m *member) Propose(ctx context.Context, client int, commands [][]byte) error {
	connection := m.clients[client%connections]
	if len(commands) == 1 {
		_, err := connection.Put(ctx, key(client, 0), string(commands[0]))
		return err
	}
	puts := make([]clientv3.Op, len(commands))
	for i, command := range commands {
		puts[i] = clientv3.OpPut(key(client, i), string(command))
	}
	_, err := connection.Txn(ctx).Then(puts...).Commit()
	return err
}

func (m *member) Read(ctx context.Context, client int) error {
	_, err := m.clients[client%connections].Get(ctx, key(client, 0))
	return err
}

func key(client, command int) string { return fmt.Sprintf("k%d-%d", client, command) }

func main() { load.Serve(start) }
