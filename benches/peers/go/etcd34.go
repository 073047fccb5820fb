//go:build etcd34
// +build etcd34

// etcd 3.4, as in Debian 12.

package main

import (
	"go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/clientv3/concurrency"
)

type (
	client  = clientv3.Client
	session = concurrency.Session
	mutex   = concurrency.Mutex
)

func connect(endpoint string) *client {
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}})
	check(err)
	return c
}

func newSession(c *client) (*session, error) {
	return concurrency.NewSession(c, concurrency.WithTTL(30))
}

func newMutex(s *session, name string) *mutex {
	return concurrency.NewMutex(s, name)
}
