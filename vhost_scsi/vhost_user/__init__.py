# SPDX-License-Identifier: Apache-2.0
"""The vhost-user transport: the back end's side of the protocol, as a server, and a small front end to drive it.

`server` takes connections, `session` follows the protocol and drives a `Device`, `messages` declares each message once,
`channel` frames them, `memory_table` and `rules` say what is wrong with one. Importing the package loads none of them.
"""
