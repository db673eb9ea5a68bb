job "effects-batch" {
  type = "batch"

  group "once" {
    count = 2

    restart {
      attempts = 1
    }

    task "once" {
      driver       = "raw_exec"
      kill_timeout = "6s"

      config {
        command = "sleep"
        args    = ["3600"]
      }

      env {
        GREETING = "hello"
      }

      resources {
        memory = 32
      }
    }
  }
}
