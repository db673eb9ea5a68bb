job "effects-service" {
  datacenters = ["dc1"]
  priority    = 50

  meta {
    team = "ml"
  }

  constraint {
    attribute = "${attr.kernel.name}"
    value     = "linux"
  }

  update {
    health_check     = "task_states"
    min_healthy_time = "1s"
    stagger          = "29s"
  }

  group "web" {
    count          = 2
    shutdown_delay = "1s"

    meta {
      tier = "front"
    }

    affinity {
      attribute = "${node.datacenter}"
      value     = "dc1"
      weight    = 60
    }

    spread {
      attribute = "${node.unique.name}"
      weight    = 70

      target "gpu-1" {
        percent = 50
      }
    }

    update {
      canary       = 1
      max_parallel = 4
    }

    network {
      port "http" {
        to = 8080
      }

      port "admin" {}
    }

    ephemeral_disk {
      size    = 110
      sticky  = false
      migrate = false
    }

    restart {
      attempts = 4
      delay    = "3s"
    }

    reschedule {
      delay          = "31s"
      delay_function = "constant"
      unlimited      = true
    }

    migrate {
      max_parallel = 3
    }

    disconnect {
      lost_after = "6m"
      replace    = true
    }

    service {
      name        = "effects-web"
      port        = "http"
      tags        = ["one", "two"]
      canary_tags = ["canary"]

      meta {
        owner = "ml"
      }

      check_restart {
        limit = 3
        grace = "90s"
      }
    }

    task "main" {
      driver         = "raw_exec"
      kill_timeout   = "6s"
      kill_signal    = "SIGTERM"
      shutdown_delay = "2s"
      leader         = true

      config {
        command = "sleep"
        args    = ["3600"]
      }

      env {
        GREETING = "hello"
        NUMBER   = "1"
      }

      meta {
        kind = "server"
      }

      affinity {
        attribute = "${attr.cpu.arch}"
        value     = "amd64"
      }

      artifact {
        source      = "http://consul/v1/status/leader"
        destination = "local/one"
        mode        = "file"
      }

      template {
        destination = "local/first.txt"
        data        = "first"
        change_mode = "noop"
      }

      template {
        destination   = "local/second.txt"
        data          = "second\n"
        change_mode   = "signal"
        change_signal = "SIGHUP"
        splay         = "4s"

        wait {
          min = "1s"
          max = "2s"
        }
      }

      identity {
        name = "extra"
        aud  = ["someone"]
      }

      identity {
        name = "other"
        aud  = ["else"]
      }

      action "say" {
        command = "echo"
        args    = ["hi"]
      }

      resources {
        cpu    = 100
        memory = 64

        device "nvidia/gpu" {
          count = 1

          constraint {
            attribute = "${device.attr.memory}"
            operator  = ">="
            value     = "7 GiB"
          }
        }
      }

      service {
        name     = "effects-main"
        port     = "admin"
        provider = "consul"

        check {
          name     = "alive"
          type     = "tcp"
          interval = "11s"
          timeout  = "2s"

          check_restart {
            limit = 200
          }
        }
      }

      logs {
        max_files     = 3
        max_file_size = 5
      }
    }

    task "before" {
      driver = "raw_exec"

      lifecycle {
        hook    = "prestart"
        sidecar = false
      }

      config {
        command = "true"
      }

      resources {
        memory = 32
      }
    }
  }

  group "plain" {
    count = 3

    update {
      max_parallel = 2
    }

    task "plain" {
      driver = "raw_exec"

      config {
        command = "sleep"
        args    = ["3601"]
      }

      resources {
        memory = 33
      }
    }
  }

  group "idle" {
    count = 0

    task "idle" {
      driver = "raw_exec"

      config {
        command = "sleep"
        args    = ["3602"]
      }
    }
  }
}
