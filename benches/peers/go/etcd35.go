//go:build etcd35
// +build etcd35

// etcd 3.5 and later, as in Debian 13.

package main

import (
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
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
