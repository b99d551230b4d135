from hw_server.cli import main

main()
